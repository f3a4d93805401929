"""Classifiers made smaller through the command line: BERT in depth, width and zeros, and recovered in rounds; decoders
and T5. What a run says of them is what plain Transformers finds, a row at a time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from tests.classifier import LABELS, sharp_classifier, sharp_classifier_like
from tests.cli import differing, run, scaleup

pytestmark = pytest.mark.slow
ROUNDS = Path(__file__).parent.parent.parent / "configs/prune/classifier.yaml"
DATA = {"train": "rows.jsonl", "test": "held.jsonl", "text": "{text}", "label": "kind", "max_length": 32}
CUT: dict[str, Any] = {
    "stage": "prune",
    "name": "cut",
    "model": {"path": "classifier"},
    "data": DATA,
    "prune": {"layers": 1, "intermediate_size": 64, "sparsity": 0.5, "pattern": "2:4", "calibration_rows": 16},
    "parallel": {"strategy": "ddp", "num_processes": 2},
}


def texts(count: int, start: int = 0) -> list[dict[str, Any]]:
    words = ("bad", "good")
    return [
        {"text": f"film {n} was {' '.join([words[n % 2]] * (1 + n % 3))}", "kind": LABELS[n % 2]}
        for n in range(start, start + count)
    ]


HELD = texts(12, 40)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("classifiers")
    for name, rows in (("rows", texts(40)), ("held", HELD)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    sharp_classifier(folder / "classifier")
    return folder


@pytest.fixture(scope="module")
def pruned(place: Path) -> Path:
    return run(CUT, cwd=place)


def loaded(folder: Path) -> Any:
    from transformers import AutoModelForSequenceClassification

    return AutoModelForSequenceClassification.from_pretrained(folder).eval()


@torch.no_grad()
def logits(model: Any, folder: Path) -> torch.Tensor:
    """Of the held-out rows one by one, ended as the tokenizer ends them, or by its eos token."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    rows = [tokenizer(row["text"])["input_ids"] for row in HELD]
    eos = tokenizer.eos_token_id
    ended = [ids if eos is None or ids[-1] == eos else [*ids, eos] for ids in rows]
    return torch.cat([model(input_ids=torch.tensor([ids])).logits for ids in ended])


def numbers(found: torch.Tensor) -> dict[str, float]:
    classes = torch.tensor([list(LABELS.values()).index(row["kind"]) for row in HELD])
    right = (found.argmax(1) == classes).double().mean()
    return {"loss": float(torch.nn.functional.cross_entropy(found, classes)), "accuracy": float(right)}


def metrics_of(folder: Path) -> dict[str, Any]:
    metrics: dict[str, Any] = json.loads((folder / "manifest.json").read_text())["metrics"]
    return metrics


def test_what_it_says_is_what_transformers_finds(pruned: Path, place: Path) -> None:
    metrics = metrics_of(pruned)
    for when, folder in (("before", place / "classifier"), ("after", pruned / "model")):
        found = numbers(logits(loaded(folder), folder))
        assert found == {key: pytest.approx(metrics[f"{key}_{when}"], abs=1e-5) for key in ("loss", "accuracy")}
    assert metrics["loss_before"] != pytest.approx(metrics["loss_after"], abs=1e-3), "a cut changes it"
    assert metrics["zeros"] == 0.5 and metrics["encoder_layers"] in ("0", "1") and metrics["reloaded"] <= 1e-4
    parts = json.loads((pruned / "plan.json").read_text())["model"]["parts"]
    assert metrics["num_parameters_after"] == parts["num_parameters"], "the plan knew"
    card = (pruned / "model/README.md").read_text()
    assert "| accuracy_after |" in card and "perplexity" not in card


def test_head_and_labels_stay(pruned: Path, place: Path) -> None:
    model, whole = loaded(pruned / "model"), loaded(place / "classifier")
    assert type(model).__name__ == "BertForSequenceClassification"
    assert (model.config.num_hidden_layers, model.config.intermediate_size) == (1, 64)
    assert model.config.id2label == LABELS
    assert model.classifier.weight.equal(whole.classifier.weight)
    assert model.bert.pooler.dense.weight.equal(whole.bert.pooler.dense.weight)


def test_one_process_cuts_the_same(pruned: Path, place: Path) -> None:
    alone = run(differing(CUT, {"name": "alone", "parallel.num_processes": 1}), cwd=place)
    found, expected = (load_file(folder / "model/model.safetensors") for folder in (alone, pruned))
    assert found.keys() == expected.keys()
    assert all(found[name].equal(expected[name]) for name in expected)


def test_evaluate_finds_the_same(pruned: Path, place: Path) -> None:
    done = scaleup("evaluate", pruned, "parallel.num_processes=1", cwd=place)
    assert done.code == 0, done.stderr
    found = json.loads((pruned / "evaluations/1/metrics.json").read_text())
    for when, name in (("before", "baseline"), ("after", "model")):
        for key in ("loss", "accuracy"):
            assert found[name][key] == pytest.approx(metrics_of(pruned)[f"{key}_{when}"], rel=1e-5)


@pytest.mark.parametrize(
    ("name", "heads"),
    [
        pytest.param("tiny-gpt2", None, marks=pytest.mark.long),
        ("tiny-llama", 1),
        pytest.param("tiny-t5", 2, marks=pytest.mark.long),
    ],
    ids=lambda part: str(part),
)
def test_other_architectures(name: str, heads: int | None, place: Path) -> None:
    """Cut every way that each of them has, in one process."""
    source = sharp_classifier_like(name, place / name)
    prune = {**CUT["prune"], "layer_score": "angular", **({"num_key_value_heads": heads} if heads else {})}
    changes = {"name": f"cut-{name}", "model.path": name, "parallel.num_processes": 1, "prune": prune}
    folder = run(differing(CUT, changes), cwd=place)
    metrics = metrics_of(folder)
    for when, model in (("before", source), ("after", folder / "model")):
        found = numbers(logits(loaded(model), model))
        assert found == {key: pytest.approx(metrics[f"{key}_{when}"], abs=1e-5) for key in ("loss", "accuracy")}
    assert metrics["num_parameters_after"] < metrics["num_parameters_before"] and metrics["zeros"] == 0.5
    result = loaded(folder / "model")
    assert type(result) is type(loaded(source)) and result.config.id2label == LABELS


@pytest.mark.long
def test_rounds_with_recovery_and_a_control(place: Path) -> None:
    config = yaml.safe_load(ROUNDS.read_text(encoding="utf-8"))
    changes = {"model.path": "classifier", "data": DATA, "prune.calibration_rows": 16}
    folder = run(differing(config, changes), cwd=place)
    sizes = [json.loads((folder / f"distilled/{n}/pruned/config.json").read_text()) for n in (1, 2)]
    assert [size["intermediate_size"] for size in sizes] == [96, 64] and sizes[1]["num_hidden_layers"] == 1
    metrics = metrics_of(folder)
    for branch in ("distilled", "control"):
        for number in (1, 2):
            trained = folder / f"{branch}/{number}/trained/model"
            found = numbers(logits(loaded(trained), trained))
            assert found == {
                key: pytest.approx(metrics[f"{key}_{branch}_{number}"], abs=1e-5) for key in ("loss", "accuracy")
            }
        assert metrics[f"loss_{branch}_2"] < metrics["loss_after"], "training helps"
    assert metrics["loss_distilled_2"] != metrics["loss_control_2"]
    result = loaded(folder / "model")
    assert result.config.id2label == LABELS
    last = load_file(folder / "distilled/2/trained/model/model.safetensors")
    assert all(weight.equal(last[name]) for name, weight in result.state_dict().items())
