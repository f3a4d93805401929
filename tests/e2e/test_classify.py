"""Sequence classifiers through the command line: they learn labels, several labels and numbers, and the result serves
as what classifiers are for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.cli import metrics, run, scaleup

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
