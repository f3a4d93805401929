"""sft, then evaluate and generate of what it made, through the command line: the outputs are there, and are true."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

from scaleup.artifacts.checkpoints import whole_checkpoints
from tests.cli import differing, folder_of, losses, metrics, run, scaleup, tensorboard, write_config

pytestmark = pytest.mark.covers("sft", "evaluate", "generate")
KEYS = {"step", "loss", "learning_rate", "grad_norm", "tokens_per_second", "memory_mib"}
PROMPTS = ["abcab:", "x:"]

CONFIG: dict[str, Any] = {
    "stage": "sft",
    "data": {
        "train": "train.jsonl",
        "validation": "validation.jsonl",
        "test": "validation.jsonl",
        "prompt": "{word}:",
        "completion": " {answer}",
        "max_length": 64,
    },
    "train": {
        "max_steps": 12,
        "learning_rate": 3e-3,
        "per_device_train_batch_size": 4,
        "eval_steps": 6,
        "save_steps": 4,
        "save_total_limit": 2,
    },
    "evaluation": {"metrics": ["perplexity", "exact_match", "rouge"]},
    "generation": {"max_new_tokens": 6},
}
MODELS = {"causal": "builtin:tiny-llama", "seq2seq": "builtin:tiny-t5"}


@dataclass(frozen=True)
class Chain:
    """A trained run, its evaluation and its generations."""

    run: Path
    shown: tuple[str, str]
    """What `evaluate` and `generate` printed."""
    again: tuple[str, bool]
    """What the same command printed once the run was finished, and whether any file changed."""


def rows(file: Path, count: int, answers: str) -> None:
    chance = random.Random(file.name)
    lines = []
    for _ in range(count):
        word = "".join(chance.choices("abcx", k=chance.randint(1, 12)))
        lines.append(json.dumps({"word": word, "answer": "".join(chance.choices(answers, k=chance.randint(1, 6)))}))
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")


def files_of(folder: Path) -> dict[str, tuple[int, int]]:
    return {
        str(file.relative_to(folder)): (file.stat().st_size, file.stat().st_mtime_ns)
        for file in folder.rglob("*")
        if file.is_file()
    }


def chain(kind: str, place: Path) -> Chain:
    config = CONFIG | {"name": kind, "model": {"path": MODELS[kind]}}
    folder = run(config, cwd=place)
    before = files_of(folder)
    again = scaleup("run", place / f"{kind}.yaml", cwd=place)
    unchanged = files_of(folder) == before and again.code == 0
    evaluated = scaleup("evaluate", folder, cwd=place)
    generated = scaleup("generate", folder, *(f"--prompt={prompt}" for prompt in PROMPTS), cwd=place)
    for result in (evaluated, generated):
        assert result.code == 0, result.stderr
    return Chain(folder, (evaluated.stdout, generated.stdout), (again.stdout, unchanged))


def run_next(place: Path, first: Path) -> Path:
    config = {"name": "next", "model": {"path": str(first)}}
    return run(differing(CONFIG | config, {"train.max_steps": 2}), cwd=place)


def run_until_no_better(place: Path) -> Path:
    """Training and validation disagree, so the validation loss falls (both are letters) and then rises."""
    changes = {
        "data.validation": "opposite.jsonl",
        "train.max_steps": 80,
        "train.learning_rate": 1e-2,
        "train.lr_scheduler_type": "constant",
        "train.eval_steps": 2,
        "train.save_steps": 2,
        "train.early_stopping_patience": 4,
        "train.load_best_model_at_end": True,
    }
    return run(differing(CONFIG | {"name": "early", "model": {"path": MODELS["causal"]}}, changes), cwd=place)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stages")
    rows(folder / "train.jsonl", 30, "pq")
    rows(folder / "validation.jsonl", 11, "pq")
    rows(folder / "opposite.jsonl", 11, "pz")
    return folder


@pytest.fixture(scope="module")
def causal(place: Path) -> Chain:
    return chain("causal", place)


@pytest.fixture(scope="module")
def seq2seq(place: Path) -> Chain:
    return chain("seq2seq", place)


@pytest.fixture(params=["causal", pytest.param("seq2seq", marks=pytest.mark.slow)])
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def done(request: pytest.FixtureRequest, kind: str) -> Chain:
    return request.getfixturevalue(kind)


def plain(model: Path) -> tuple[Any, Any]:
    """A model folder as anybody loads it."""
    seq2seq = "T5" in (model / "config.json").read_text()
    auto = AutoModelForSeq2SeqLM if seq2seq else AutoModelForCausalLM
    return auto.from_pretrained(model).eval(), AutoTokenizer.from_pretrained(model)


@torch.no_grad()
def loss_by_hand(model: Path, file: Path) -> float:
    """Mean negative log-likelihood a completion token, one row at a time, with nothing of scaleup's."""
    network, tokenizer = plain(model)
    total, count = 0.0, 0
    for line in file.read_text().splitlines():
        row = json.loads(line)
        prompt, completion = f"{row['word']}:", f" {row['answer']}"
        if network.config.is_encoder_decoder:
            labels = tokenizer(text_target=completion, return_tensors="pt").input_ids
            logits = network(**tokenizer(prompt, return_tensors="pt"), labels=labels).logits[0]
            targets = labels[0]
        else:
            start = tokenizer(prompt, add_special_tokens=False).input_ids
            end = [*tokenizer(completion, add_special_tokens=False).input_ids, tokenizer.eos_token_id]
            logits = network(torch.tensor([start + end])).logits[0, len(start) - 1 : -1]
            targets = torch.tensor(end)
        total += float(F.cross_entropy(logits, targets, reduction="sum"))
        count += len(targets)
    return total / count


def evaluations(folder: Path) -> dict[int, float]:
    return {line["step"]: line["eval_loss"] for line in metrics(folder) if "eval_loss" in line}


def test_the_model_gives_the_validation_loss_of_its_training(done: Chain, place: Path) -> None:
    logged = evaluations(done.run)
    assert list(logged) == [6, 12]
    assert loss_by_hand(done.run / "model", place / "validation.jsonl") == pytest.approx(logged[12], abs=1e-5)
    assert {file.suffix for file in (done.run / "model").iterdir()} >= {".safetensors", ".json", ".md"}
    assert (done.run / "model" / "generation_config.json").is_file()


def test_metrics_have_their_keys(done: Chain) -> None:
    lines = [line for line in metrics(done.run) if "loss" in line]
    assert [line["step"] for line in lines] == list(range(1, 13))
    assert all(line.keys() >= KEYS for line in lines)
    assert all(line["memory_mib"] > 100 and line["tokens_per_second"] > 0 for line in lines)
    assert lines[0]["learning_rate"] > lines[-1]["learning_rate"], "the schedule is linear"


def test_tensorboard_has_the_same_losses(done: Chain) -> None:
    assert tensorboard(done.run, "loss") == pytest.approx(losses(done.run), rel=1e-6)
    assert tensorboard(done.run, "eval_loss") == pytest.approx(evaluations(done.run), rel=1e-6)


def test_the_loss_curve_is_a_picture(done: Chain) -> None:
    content = (done.run / "loss.png").read_bytes()
    assert content.startswith(b"\x89PNG\r\n\x1a\n") and content.rstrip().endswith(b"IEND\xaeB`\x82")


def test_the_card_names_base_data_config_and_metrics(done: Chain, kind: str) -> None:
    card = (done.run / "model" / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: transformers\n")
    for part in (MODELS[kind], "train.jsonl", "learning_rate: 0.003", "| train_loss |", "| eval_loss |"):
        assert part in card


def test_the_manifest_is_last_and_lists_the_files(done: Chain) -> None:
    manifest = json.loads((done.run / "manifest.json").read_text())
    written = (done.run / "manifest.json").stat().st_mtime_ns
    assert manifest["stage"] == "sft" and manifest["num_steps"] == 12
    assert manifest["metrics"]["eval_loss"] == evaluations(done.run)[12]
    assert set(manifest["files"]) >= {"model/config.json", "model/model.safetensors", "metrics.jsonl", "loss.png"}
    for name, size in manifest["files"].items():
        status = (done.run / name).stat()
        assert (status.st_size, status.st_mtime_ns <= written) == (size, True), name


def test_the_last_checkpoints_are_kept(done: Chain) -> None:
    assert [checkpoint.step for checkpoint in whole_checkpoints(done.run / "checkpoints")] == [8, 12]


def test_a_finished_run_is_left_alone(done: Chain) -> None:
    shown, unchanged = done.again
    assert "has finished already; nothing to do" in shown
    assert unchanged


def test_evaluate_measures_before_and_after(done: Chain, place: Path) -> None:
    folder = done.run / "evaluations" / "1"
    found = json.loads((folder / "metrics.json").read_text())
    after, before = found["model"], found["baseline"]
    assert after["rows"] == before["rows"] == 11
    assert after["loss"] == pytest.approx(evaluations(done.run)[12], abs=1e-6), "the test rows are the validation rows"
    assert after["perplexity"] == pytest.approx(float(torch.tensor(after["loss"], dtype=torch.float64).exp()))
    assert after["loss"] < before["loss"] - 0.5
    assert after.keys() >= {"exact_match", "rouge1", "rouge2", "rougeL"}
    predictions = [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]
    assert [row["reference"] for row in predictions] == [
        json.loads(line)["answer"] for line in (place / "validation.jsonl").read_text().splitlines()
    ]
    assert (folder / "manifest.json").is_file()
    assert "before" in done.shown[0] and "after" in done.shown[0] and "perplexity" in done.shown[0]


def test_generate_says_what_the_model_says(done: Chain) -> None:
    lines = (done.run / "generations" / "1" / "generations.jsonl").read_text().splitlines()
    found = [json.loads(line) for line in lines]
    assert [answer["id"] for answer in found] == list(range(len(PROMPTS)))
    assert [answer["prompt"] for answer in found] == PROMPTS
    assert [answer["completion"] for answer in found] == generate_by_hand(done.run / "model", PROMPTS)
    assert all(answer["completion"] in done.shown[1] for answer in found)


def generate_by_hand(model: Path, prompts: Sequence[str]) -> list[str]:
    network, tokenizer = plain(model)
    answers = []
    for prompt in prompts:
        inputs = tokenizer(prompt, return_tensors="pt", return_token_type_ids=False)
        output = network.generate(**inputs, max_new_tokens=6, do_sample=False)[0]
        skip = 0 if network.config.is_encoder_decoder else inputs["input_ids"].shape[1]
        answers.append(tokenizer.decode(output[skip:], skip_special_tokens=True))
    return answers


@pytest.mark.slow
def test_a_finished_run_is_the_source_of_the_next(causal: Chain, place: Path) -> None:
    first, following = causal.run, run_next(place, causal.run)
    plan = json.loads((following / "plan.json").read_text())
    assert plan["model"]["location"] == str(first / "model")
    assert losses(following)[1] < losses(first)[1] - 0.5, "it starts where the first ended"


@pytest.mark.slow
def test_early_stopping_puts_the_best_weights_back(place: Path) -> None:
    folder = run_until_no_better(place)
    logged = evaluations(folder)
    best = min(logged, key=lambda step: logged[step])
    last = max(logged)
    print(f"best at step {best}, stopped at step {last}")
    assert last == best + 4 * 2 < 80
    assert best > 2
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["num_steps"] == last
    assert (manifest["metrics"]["best_step"], manifest["metrics"]["best_eval_loss"]) == (best, logged[best])
    assert loss_by_hand(folder / "model", place / "opposite.jsonl") == pytest.approx(logged[best], abs=1e-5)
    kept = [checkpoint.step for checkpoint in whole_checkpoints(folder / "checkpoints")]
    assert kept == [best, last - 2, last], "the newest two, and the best beside them"


def test_an_unfinished_run_cannot_be_evaluated(place: Path) -> None:
    config = CONFIG | {"name": "unfinished", "model": {"path": MODELS["causal"]}}
    folder = folder_of(config, place)
    folder.mkdir(parents=True)
    write_config(config, folder)
    (folder / "unfinished.yaml").rename(folder / "config.yaml")
    result = scaleup("evaluate", folder, cwd=place)
    assert result.code == 2
    assert "is a run that has not finished" in result.stderr
