"""Sequence classifiers through the command line: they learn labels, several labels and numbers, and the result serves
as what classifiers are for."""

from __future__ import annotations

import ast
import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from tests.cli import lines_of, metrics, run, scaleup, write_config
from tests.forked_runs import train
from tests.snippets import run_snippet

pytestmark = pytest.mark.covers("classify")
WORDS = ("bad", "good", "fine")


def write_rows(folder: Path, labels: dict[str, Any], **names: int) -> None:
    """Rows whose text holds the word of their class, by name of the file: so many rows each."""
    for name, count in names.items():
        rows = [{"text": f"{name} {n} was {word}", "label": labels[word]} for n, word in numbered(count)]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def numbered(count: int) -> list[tuple[int, str]]:
    return [(n, WORDS[n % 3]) for n in range(count)]


def config_of(name: str, **keys: Any) -> dict[str, Any]:
    return {
        "stage": "classify",
        "name": name,
        "model": {"path": "builtin:tiny-bert"},
        "data": {"train": "rows.jsonl", "validation": "held.jsonl", "test": "test.jsonl", "max_length": 32},
        "train": {"max_steps": 30, "learning_rate": 1e-2, "per_device_train_batch_size": 12, "eval_steps": 15},
        "parallel": {"strategy": "single"},
        **keys,
    }


def test_it_learns_the_labels_of_rows(tmp_path: Path) -> None:
    write_rows(tmp_path, {"bad": 1, "good": 5, "fine": 3}, rows=60, held=12, test=12)
    done = run(config_of("stars"), cwd=tmp_path)
    told = [line for line in metrics(done) if "eval_accuracy" in line]
    assert [line["step"] for line in told] == [15, 30]
    assert told[-1]["eval_accuracy"] > 0.95
    saved = json.loads((done / "model/config.json").read_text())
    assert saved["id2label"] == {"0": "1", "1": "3", "2": "5"}
    assert saved["problem_type"] == "single_label_classification"

    result = scaleup("evaluate", done, cwd=tmp_path)
    assert result.code == 0, result.stderr
    found = json.loads((done / "evaluations/1/metrics.json").read_text())["model"]
    assert found["accuracy"] == found["f1_micro"] > 0.95
    assert found["matthews"] > 0.9
    assert found["confusion"]["5"]["5"] == 4
    assert "rows: true label, columns: predicted" in result.stdout


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classifiers: a whole encoder, and a LoRA on a decoder."""
    folder = tmp_path_factory.mktemp("classifiers")
    write_rows(folder, {word: word for word in WORDS}, rows=60, held=12, test=12)
    shutil.copy(folder / "rows.jsonl", folder / "also.jsonl")  # rows that are measured are not trained on
    lora = {"type": "lora", "r": 8, "lora_alpha": 32, "target_modules": "all-linear"}
    decoder = {"model": {"path": "builtin:tiny-llama"}, "adapter": lora}
    train({"whole": config_of("whole"), "lora": config_of("lora", **decoder)}, folder)
    return folder


CLASSIFIERS = ("whole", "lora")


@pytest.mark.slow
@pytest.mark.parametrize("name", CLASSIFIERS)
def test_the_result_is_one_of_transformers(place: Path, name: str) -> None:
    """What `evaluate` predicts of a row is what plain Transformers, and PEFT, give it by itself."""
    run_folder = place / "runs" / name
    result = scaleup("evaluate", run_folder, cwd=place)
    assert result.code == 0, result.stderr
    rows = [json.loads(line) for line in (run_folder / "evaluations/1/predictions.jsonl").read_text().splitlines()]
    found = json.loads((run_folder / "evaluations/1/metrics.json").read_text())["model"]
    assert found["accuracy"] > 0.9
    assert found["accuracy"] == sum(row["label"] == row["model"]["prediction"] for row in rows) / len(rows)
    model, tokenizer = loaded(run_folder / "model"), AutoTokenizer.from_pretrained(run_folder / "model")
    names = ("bad", "fine", "good")
    for row in rows:
        ids = tokenizer(row["text"])["input_ids"]
        ids += [tokenizer.eos_token_id] if name == "lora" else []
        with torch.no_grad():
            probabilities = model(input_ids=torch.tensor([ids])).logits.softmax(dim=1)[0]
        for label, probability in zip(names, probabilities.tolist(), strict=True):
            assert row["model"]["probabilities"][label] == pytest.approx(probability, abs=1e-5)


@pytest.mark.slow
def test_classifiers_are_compared(place: Path) -> None:
    config = {
        "stage": "evaluate",
        "name": "both",
        "model": {"path": "runs/whole"},
        "models": {"lora": {"path": "runs/lora"}},
        "data": {"test": "test.jsonl", "text": "{text}", "label": "label", "max_length": 32},
        "parallel": {"num_processes": 2},
    }
    result = scaleup("compare", write_config(config, place), "--by", "loss", "--json", cwd=place)
    assert result.code == 0, result.stderr
    told, rows = json.loads(result.stdout), lines_of(place / "runs/both/predictions.jsonl")
    losses = [[row["scores"][name]["loss"] for row in rows] for name in ("baseline", "lora")]
    for row, loss in zip(rows, losses[1], strict=True):
        assert loss == pytest.approx(-math.log(row["lora"]["probabilities"][row["label"]]), rel=1e-5)
    won = sum(theirs < own for own, theirs in zip(*losses, strict=True))
    assert told["wins"]["loss"]["lora"]["wins"] == won
    figure = told["metrics"]["loss"]["lora"]
    assert figure["difference"] == pytest.approx(sum(losses[1]) / 12 - sum(losses[0]) / 12)
    assert figure["difference_interval"][0] < figure["difference"] < figure["difference_interval"][1]
    assert 0 <= told["metrics"]["accuracy"]["lora"]["p_value"] <= 1
    assert told["samples"][0]["answers"]["lora"] in WORDS


def loaded(folder: Path) -> Any:
    if not (folder / "adapter_config.json").is_file():
        return AutoModelForSequenceClassification.from_pretrained(folder).eval()
    base = json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"]
    count = len(json.loads((folder / "labels.json").read_text())["labels"])
    whole = AutoModelForSequenceClassification.from_pretrained(base, num_labels=count)
    return PeftModel.from_pretrained(whole, folder).eval()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_result_serves_as_what_classifiers_are_for(place: Path) -> None:
    """As a reward, as a toxicity model, as a teacher, as what is pruned, and as what is trained further."""
    texts = {"text": "{text}", "label": "label"}
    configs: dict[str, dict[str, Any]] = {}
    for name in CLASSIFIERS:
        model = {"path": f"runs/{name}"}
        prompts = {"prompt": "{text}", "max_length": 32}
        configs[f"reward-{name}"] = {
            "stage": "ppo",
            "model": {"path": "builtin:tiny-llama"},
            "data": {"train": "rows.jsonl", **prompts},
            "ppo": {"num_rollouts": 2, "rollout_batch_size": 4, "max_new_tokens": 6},
            "reward": {"placement": "colocated", "model": model, "label": "good", "score": "probability"},
            "train": {"learning_rate": 1e-3, "per_device_train_batch_size": 2},
        }
        configs[f"toxicity-{name}"] = {
            "stage": "evaluate",
            "model": {"path": "builtin:tiny-llama"},
            "data": {"test": "test.jsonl", **prompts},
            "evaluation": {"metrics": ["toxicity"], "toxicity_model": model, "toxic_label": "bad"},
        }
        configs[f"taught-{name}"] = {
            "stage": "distill",
            "model": {"path": "builtin:tiny-bert" if name == "whole" else "builtin:tiny-llama"},
            "teacher": model,
            "data": {"train": "also.jsonl", "validation": "held.jsonl", **texts, "max_length": 32},
            "distill": {"alpha": 1.0},
            "train": {"max_steps": 12, "learning_rate": 1e-2, "per_device_train_batch_size": 12},
        }
        configs[f"further-{name}"] = config_of(f"further-{name}", model=model)
        configs[f"further-{name}"]["train"] = {"max_steps": 1, "learning_rate": 1e-9}
    configs["pruned"] = {
        "stage": "prune",
        "model": {"path": "runs/whole"},
        "data": {"train": "rows.jsonl", "test": "test.jsonl", **texts, "max_length": 32},
        "prune": {"intermediate_size": 120, "calibration_rows": 16},
    }
    runs = train({name: {"name": name, "parallel": {"strategy": "ddp"}, **raw} for name, raw in configs.items()}, place)
    for name in CLASSIFIERS:
        scores = [line["objective/scores"] for line in metrics(runs[f"reward-{name}"]) if "objective/scores" in line]
        assert len(scores) == 2
        assert all(0 < score < 1 for score in scores)
        toxicity = json.loads((runs[f"toxicity-{name}"] / "metrics.json").read_text())["model"]
        assert 0 < toxicity["toxicity"] < 1
        saved = json.loads((runs[f"taught-{name}"] / "model/config.json").read_text())
        assert list(saved["id2label"].values()) == ["bad", "fine", "good"]
        taught = [line["loss"] for line in metrics(runs[f"taught-{name}"]) if "loss" in line]
        assert taught[-1] < taught[0] - 0.02
        [first] = [line["accuracy"] for line in metrics(runs[f"further-{name}"]) if "accuracy" in line]
        assert first > 0.9, "it began where the first training ended"
    pruned = json.loads((runs["pruned"] / "manifest.json").read_text())["metrics"]
    assert pruned["accuracy_before"] > 0.9
    assert pruned["accuracy_after"] > 0.6


@pytest.mark.slow
@pytest.mark.parametrize("name", CLASSIFIERS)
def test_the_result_is_exported_as_onnx(place: Path, name: str) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    run_folder = place / "runs" / name
    result = scaleup("export", run_folder, "export.format=onnx", cwd=place)
    assert result.code == 0, result.stderr
    session = onnxruntime.InferenceSession(run_folder / "exports/1/model/model.onnx")
    ids = torch.tensor([[5, 60, 70, 80, 2]])
    feeds = {"input_ids": ids.numpy(), "attention_mask": torch.ones_like(ids).numpy()}
    [logits] = session.run(None, feeds)
    with torch.no_grad():
        wanted = loaded(run_folder / "model")(**{name: torch.from_numpy(value) for name, value in feeds.items()}).logits
    assert (torch.from_numpy(logits) - wanted).abs().max() < 1e-4
    labels = json.loads((run_folder / "exports/1/model/config.json").read_text())["id2label"]
    assert labels["2"] == "good"
    named = ast.literal_eval(run_snippet("docs/deployment.md", 1, run_folder / "exports/1/model"))
    assert len(named) == 2 and set(named) <= set(labels.values())


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("problem", ["multi_label", "regression"])
def test_it_learns_several_labels_and_numbers(tmp_path: Path, problem: str) -> None:
    several = {"bad": [], "good": ["kind"], "fine": ["kind", "calm"]}
    numbers = {"bad": -1.5, "good": 1.0, "fine": 0.25}
    write_rows(tmp_path, several if problem == "multi_label" else numbers, rows=60, held=12, test=12)
    done = run(config_of(problem), cwd=tmp_path)
    saved = json.loads((done / "model/config.json").read_text())
    assert saved["problem_type"].startswith(problem)
    assert list(saved["id2label"].values()) == (["calm", "kind"] if problem == "multi_label" else ["LABEL_0"])
    result = scaleup("evaluate", done, cwd=tmp_path)
    assert result.code == 0, result.stderr
    found = json.loads((done / "evaluations/1/metrics.json").read_text())["model"]
    if problem == "multi_label":
        assert min(found[key] for key in ("accuracy", "f1_macro", "f1_micro")) > 0.95
    else:
        assert found["mse"] < 0.2, "of a variance of 1.1"
        assert min(found["pearson"], found["spearman"]) > 0.9
