"""`train.save_minutes` decides by a clock, and so must all ranks alike; and it changes nothing but what is saved."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from scaleup.artifacts.checkpoints import whole_checkpoints
from tests.cli import differing, largest_weight_difference, metrics
from tests.forked_runs import train

pytestmark = pytest.mark.slow
SFT: dict[str, Any] = {
    "stage": "sft",
    "model": {"path": "builtin:tiny-llama"},
    "data": {"train": "rows.jsonl", "prompt": "{prompt}", "completion": "{completion}", "max_length": 64},
    "train": {"max_steps": 5, "learning_rate": 1e-3, "per_device_train_batch_size": 2, "save_total_limit": 9},
}
PPO: dict[str, Any] = {
    "stage": "ppo",
    "model": {"path": "builtin:tiny-llama"},
    "data": {"train": "rows.jsonl", "prompt": "{prompt}", "max_length": 32},
    "ppo": {"num_rollouts": 3, "rollout_batch_size": 4, "num_ppo_epochs": 1, "max_new_tokens": 4},
    "reward": {"placement": "colocated", "model": {"path": "builtin:tiny-bert-classifier"}, "label": "positive"},
    "train": {"learning_rate": 1e-3, "save_total_limit": 9},
}
RUNS = {"sft-1": (SFT, 1), "sft-2": (SFT, 2), "ppo-2": (PPO, 2)}
MEASURED = ("time", "tokens_per_second", "memory")
"""Beginnings of what differs between two runs that are the same."""


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Each run as it is, and with every step over the time."""
    place = tmp_path_factory.mktemp("minutes")
    rows = [{"prompt": "ab" * (1 + number % 7), "completion": "c" * (1 + number % 5)} for number in range(20)]
    (place / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    configs = {}
    for name, (config, processes) in RUNS.items():
        plain = differing(config, {"name": name, "parallel.num_processes": processes})
        configs |= {
            name: plain,
            f"{name}-timed": differing(plain, {"name": f"{name}-timed", "train.save_minutes": 1e-9}),
        }
    return train(configs, place)


@pytest.mark.parametrize("name", RUNS)
def test_every_step_is_saved_and_nothing_else_changes(folders: dict[str, Path], name: str) -> None:
    plain, timed = folders[name], folders[f"{name}-timed"]
    last = RUNS[name][0]["train"].get("max_steps", 3)
    saved = [[checkpoint.step for checkpoint in whole_checkpoints(run / "checkpoints")] for run in (plain, timed)]
    assert saved == [[last], list(range(1, last + 1))]
    assert largest_weight_difference(plain, timed) == 0
    lines = [
        [{k: v for k, v in line.items() if not k.startswith(MEASURED)} for line in metrics(run)]
        for run in (plain, timed)
    ]
    assert lines[0] == lines[1]
