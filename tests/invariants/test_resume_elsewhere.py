"""A run that was stopped on one number of processes goes on with another, on the same trajectory."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.cli import differing, interrupt, largest_loss_difference, largest_weight_difference, losses, reached, run

TOLERANCE = 1e-5

BASE: dict[str, Any] = {
    "stage": "sft",
    "model": {"path": "builtin:tiny-llama"},
    "data": {"train": "rows.jsonl", "prompt": "{prompt}", "completion": "{completion}", "max_length": 128},
    "train": {
        "max_steps": 40,
        "learning_rate": 0.1,
        "lr_scheduler_type": "cosine",
        "optimizer": "sgd",
        "momentum": 0.5,
        "global_batch_size": 8,
    },
}


def on(processes: int) -> dict[str, int]:
    return {"parallel.num_processes": processes, "train.per_device_train_batch_size": 8 // processes}


@pytest.mark.parametrize(("strategy", "before", "after"), [("ddp", 2, 1), ("fsdp2", 1, 2), ("fsdp2", 2, 1)])
def test_another_number_of_processes(strategy: str, before: int, after: int, tmp_path: Path) -> None:
    rows = [{"prompt": "x" * (3 + 11 * i % 60), "completion": f" {i} is what follows"[: 4 + i % 15]} for i in range(64)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    config = differing(BASE, {"parallel.strategy": strategy})
    straight = run(differing(config, {"name": "straight", **on(before)}), cwd=tmp_path)

    moved = differing(config, {"name": "moved"})
    stopped = interrupt(
        differing(moved, on(before)),
        cwd=tmp_path,
        when=reached(5),
        do=lambda process, folder: process.send_signal(signal.SIGTERM),
    )
    assert stopped.code == 75, stopped.stderr
    folder = run(differing(moved, on(after)), "--resume", cwd=tmp_path)

    assert max(losses(folder)) == 40
    assert json.loads((folder / "plan.json").read_text())["groups"][0]["num_processes"] == after
    assert largest_loss_difference(straight, folder) <= TOLERANCE
    assert largest_weight_difference(straight, folder) <= TOLERANCE
