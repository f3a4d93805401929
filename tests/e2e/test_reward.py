"""A reward model through the command line: trained, evaluated, trained further; what it cannot do is refused."""

from __future__ import annotations

import json
import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from scaleup.config.schema import ModelConfig, ScorerConfig
from scaleup.describe.model import model_facts
from scaleup.models.scoring import load_scorer
from tests.cli import losses, run, scaleup

pytestmark = pytest.mark.covers("reward")
CONFIG: dict[str, Any] = {
    "stage": "reward",
    "name": "judge",
    "model": {"path": "builtin:tiny-bert"},
    "data": {
        "train": "train.jsonl",
        "validation": "held.jsonl",
        "test": "held.jsonl",
        "prompt": "{ask}",
        "chosen": "{good}",
        "rejected": "{bad}",
        "max_length": 48,
    },
    "reward": {"template": "{prompt} | {response}"},
    "train": {"max_steps": 30, "learning_rate": 3e-3, "per_device_train_batch_size": 8},
}


def rows(file: Path, count: int) -> None:
    """Answers without an x are better. One pair in each file is of equals."""
    chance = random.Random(file.name)
    made = []
    for _ in range(count):
        good = "".join(chance.choices("abc", k=chance.randint(1, 9)))
        made.append({"ask": "?", "good": good, "bad": good[: chance.randint(0, 3)] + "xx"})
    made.append({"ask": "?", "good": "same", "bad": "same"})
    file.write_text("".join(json.dumps(row) + "\n" for row in made), encoding="utf-8")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("judge")
    rows(folder / "train.jsonl", 120)
    rows(folder / "held.jsonl", 20)
    return folder


@pytest.fixture(scope="module")
def judge(place: Path) -> Path:
    return run(CONFIG, cwd=place)


def test_what_is_left(judge: Path) -> None:
    found = json.loads((judge / "manifest.json").read_text())
    assert found["metrics"]["left_out_equal"] == 2
    assert found["metrics"]["eval_pairs"] == 20
    assert found["metrics"]["eval_accuracy"] > 0.9
    assert {"model/reward.json", "model/model.safetensors"} <= found["files"].keys()
    assert losses(judge)[30] < 0.5 < losses(judge)[1]


def test_scores_are_those_of_plain_transformers_and_normalised(judge: Path, place: Path) -> None:
    asked = ModelConfig(path=str(judge))
    scorer = load_scorer(ScorerConfig(asked), model_facts(asked), torch.device("cpu"))
    held = [json.loads(line) for line in (place / "held.jsonl").read_text().splitlines()][:20]
    pairs = [(row["ask"], row[key]) for row in held for key in ("good", "bad")]
    scores = torch.tensor(scorer.score(pairs))
    assert float(scores.mean()) == pytest.approx(0.0, abs=1e-4)
    assert float(scores.std(correction=0)) == pytest.approx(1.0, abs=1e-4)
    model = AutoModelForSequenceClassification.from_pretrained(judge / "model").eval()
    tokenizer = AutoTokenizer.from_pretrained(judge / "model")
    texts = tokenizer([f"{prompt} | {answer}" for prompt, answer in pairs], padding=True, return_tensors="pt")
    with torch.no_grad():
        plain = model(**texts).logits[:, 0]
    torch.testing.assert_close(scores * scorer.std + scorer.mean, plain, atol=1e-4, rtol=0)


@pytest.mark.slow
def test_evaluated_and_trained_further(judge: Path, place: Path, pool: ThreadPoolExecutor) -> None:
    adapter = {"type": "lora", "target_modules": ["query", "value"]}
    further = {**CONFIG, "name": "further", "model": {"path": str(judge)}, "adapter": adapter}
    trained = pool.submit(run, {**further, "train": {**CONFIG["train"], "max_steps": 2}}, cwd=place)
    result = scaleup("evaluate", judge, cwd=place)
    assert result.code == 0, result.stderr
    assert "accuracy_chosen_longer" in result.stdout
    found = json.loads((judge / "evaluations/1/metrics.json").read_text())["model"]
    known = json.loads((judge / "manifest.json").read_text())["metrics"]
    assert found["accuracy"] == known["eval_accuracy"], "the held-out pairs are the same"
    assert found["brier"] == pytest.approx(known["eval_brier"], abs=1e-6)
    scored = [json.loads(line) for line in (judge / "evaluations/1/predictions.jsonl").read_text().splitlines()]
    assert (
        sum(row["model"]["chosen_score"] > row["model"]["rejected_score"] for row in scored) / 20 == found["accuracy"]
    )
    folder = trained.result()
    assert losses(folder)[1] < 0.5, "it begins where the first one ended"
    asked = ModelConfig(path=str(folder))
    facts = model_facts(asked)
    assert (facts.task, facts.adapter) == ("sequence_classification", str(folder / "model"))
    again = load_scorer(ScorerConfig(asked), facts, torch.device("cpu"))
    good, bad = again.score([("?", "abc"), ("?", "xx")])
    assert good > bad


@pytest.mark.parametrize(
    ("command", "told"),
    [
        (
            ("generate", "--prompt", "a"),
            "is the run of a reward model or a classifier, which scores texts and writes none",
        ),
        (("export",), "is a sequence classifier (BertForSequenceClassification), and safetensors are checked"),
    ],
)
def test_what_it_cannot_do(judge: Path, place: Path, command: tuple[str, ...], told: str) -> None:
    name, *options = command
    result = scaleup(name, judge, *options, cwd=place)
    assert (result.code, told in result.stderr) == (2, True), result.stderr
