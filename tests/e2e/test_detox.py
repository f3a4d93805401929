"""Detoxification through the command line: an encoder-decoder policy with LoRA is rewarded for what a classifier does
not take for hate, and what it writes afterwards is less often hateful."""

from __future__ import annotations

import json
import random
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from scaleup.models.sources import materialize
from tests.cli import logs, run, scaleup

pytestmark = pytest.mark.slow
PROMPTS = 128
CONFIG: dict[str, Any] = {
    "stage": "ppo",
    "name": "detox",
    "model": {"path": "builtin:tiny-t5"},
    "adapter": {"type": "lora", "r": 32, "lora_alpha": 32, "target_modules": ["q", "v", "wo"]},
    "data": {"train": "train.jsonl", "test": "test.jsonl", "prompt": "Summarize: {text}", "max_length": 32},
    "ppo": {
        "num_rollouts": 12,
        "rollout_batch_size": 128,
        "num_ppo_epochs": 4,
        "max_new_tokens": 8,
        "kl_coef": 0.01,
    },
    "reward": {"placement": "colocated", "model": {"path": "classifier"}, "label": "nothate", "template": "{response}"},
    "train": {
        "learning_rate": 1e-2,
        "lr_scheduler_type": "constant",
        "per_device_train_batch_size": 128,
        "per_device_eval_batch_size": 128,
    },
    "evaluation": {
        "metrics": ["toxicity"],
        "toxicity_model": {"path": "classifier"},
        "toxic_label": "hate",
        "batch_size": 128,
    },
    "generation": {"max_new_tokens": 8, "temperature": 1.0},
}


def is_hate(text: str) -> bool:
    """The rule that the classifier learns: no small letters."""
    return any("a" <= letter <= "z" for letter in text)


def drawn_text(chance: random.Random) -> str:
    """What a random byte-level model writes; as often hateful as not."""
    while True:
        text = chance.randbytes(chance.randint(0, 10)).decode(errors="replace")
        if is_hate(text) == (chance.random() < 0.5):
            return text


def train_classifier(folder: Path) -> None:
    """A BERT that knows the rule, in Hugging Face's layout."""
    source, chance = materialize("builtin:tiny-bert-classifier"), random.Random(0)
    tokenizer = AutoTokenizer.from_pretrained(source)
    labels = {0: "nothate", 1: "hate"}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForSequenceClassification.from_pretrained(
            source, id2label=labels, label2id={label: place for place, label in labels.items()}
        )
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
        for _ in range(60):
            texts = [drawn_text(chance) for _ in range(64)]
            batch = tokenizer(texts, padding=True, return_tensors="pt", return_token_type_ids=False)
            loss = model(**batch, labels=torch.tensor([int(is_hate(text)) for text in texts])).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def write_prompts(file: Path, count: int) -> None:
    chance = random.Random(file.name)
    texts = ["".join(chance.choices("abc XYZ", k=chance.randint(1, 20))) + "." for _ in range(count)]
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")


def test_a_policy_becomes_less_toxic(tmp_path: Path) -> None:
    train_classifier(tmp_path / "classifier")
    write_prompts(tmp_path / "train.jsonl", 200)
    write_prompts(tmp_path / "test.jsonl", PROMPTS)
    folder = run(CONFIG, cwd=tmp_path)
    evaluated = scaleup("evaluate", folder, cwd=tmp_path)
    assert evaluated.code == 0, f"{evaluated.stderr}\n{logs(folder)}"

    found = json.loads((folder / "evaluations/1/metrics.json").read_text())
    assert list(found) == ["baseline", "model"]
    assert all(of.keys() >= {"toxicity", "toxicity_std"} and of["rows"] == PROMPTS for of in found.values())
    for column, of in found.items():
        print(f"{column}: toxicity {of['toxicity']:.3f}, standard deviation {of['toxicity_std']:.3f}")
    assert found["model"]["toxicity"] < found["baseline"]["toxicity"] - 0.15
    assert all(of["toxicity_std"] > 0.1 for of in found.values())

    answers = [json.loads(line) for line in (folder / "evaluations/1/predictions.jsonl").read_text().splitlines()]
    named = ["id", "prompt", "baseline", "model", "scores"]
    assert all(list(row) == named for row in answers), "no row says what the answer should be"
    for column, of in found.items():  # by the rule itself, which the classifier has learned well
        assert fmean(row["scores"][column]["toxicity"] for row in answers) == pytest.approx(of["toxicity"])
        assert abs(fmean(is_hate(row[column]) for row in answers) - of["toxicity"]) < 0.1, column
    assert all(word in evaluated.stdout for word in ("before", "after", "toxicity", "toxicity_std"))
