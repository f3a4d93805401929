"""The run that every test of this folder changes, and its rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

CONFIG: dict[str, Any] = {
    "name": "cpu",
    "stage": "sft",
    "model": {"path": "builtin:tiny-llama"},
    "data": {"train": "rows.jsonl", "prompt": "{a}", "completion": " {b}"},
    "train": {"max_steps": 8, "learning_rate": 0.1, "optimizer": "sgd", "per_device_train_batch_size": 4},
    "parallel": {"num_processes": 1, "device": "cpu"},
}


def write_rows(folder: Path) -> None:
    rows = [f'{{"a": "{"x" * (3 + 7 * i % 40)}", "b": "answer {i}"}}\n' for i in range(40)]
    (folder / "rows.jsonl").write_text("".join(rows), encoding="utf-8")
