"""Runs of seconds that several test files hurt, spread or schedule: their configs, their rows, and when two are one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.cli import largest_weight_difference, metrics

SFT: dict[str, Any] = {
    "stage": "sft",
    "model": {"path": "builtin:tiny-llama"},
    "data": {"train": "rows.jsonl", "prompt": "{prompt}", "completion": "{completion}", "max_length": 64},
    "train": {"max_steps": 6, "learning_rate": 1e-3, "per_device_train_batch_size": 2},
}
PPO: dict[str, Any] = {
    "stage": "ppo",
    "model": {"path": "builtin:tiny-llama"},
    "data": {"train": "rows.jsonl", "prompt": "{prompt}", "max_length": 32},
    "ppo": {"num_rollouts": 8, "rollout_batch_size": 4, "num_ppo_epochs": 1, "max_new_tokens": 6},
    "reward": {"model": {"path": "builtin:tiny-bert-classifier"}, "label": "positive"},
    "train": {"learning_rate": 1e-3, "save_steps": 2},
}


def write_rows(folder: Path) -> None:
    rows = [{"prompt": "ab" * (1 + number % 7), "completion": "c" * (1 + number % 5)} for number in range(20)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def same_rollouts(one: Path, other: Path, count: int) -> None:
    """Two PPO runs have had that many, with the same scores, and ended with the same policy."""
    left, right = (
        [line["objective/scores"] for line in metrics(folder) if "objective/scores" in line] for folder in (one, other)
    )
    assert len(left) == count
    assert left == pytest.approx(right, abs=1e-5)
    assert largest_weight_difference(one, other) < 1e-5
