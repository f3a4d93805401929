"""Batches that go by lengths are one trajectory, too: two micro-batches a step, of one process or of one each of two.

As in test_one_trajectory: SGD in float32."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.cli import differing, losses, metrics
from tests.forked_runs import train
from tests.invariants.test_one_trajectory import BASE, assert_same, write_rows

NUM_ROWS = 40
EPOCHS = {"train.max_steps": None, "train.num_train_epochs": 2}
CASES: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "tokens": ("tiny-llama", {"train.tokens_per_device": 256}),
    "group-by-length": ("tiny-llama", {"train.group_by_length": True, "train.per_device_train_batch_size": 4}),
    "tokens-t5": ("tiny-t5", {**EPOCHS, "train.tokens_per_device": 256}),
    "packing": ("tiny-llama", {**EPOCHS, "data.packing": True, "train.per_device_train_batch_size": 2}),
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("batches")
    write_rows(folder / "rows.jsonl", NUM_ROWS, "m")
    return folder


@pytest.fixture(scope="module")
def runs(place: Path) -> Mapping[str, Path]:
    """Each case on one process and on two."""
    return train({f"{name}-{processes}": config(name, processes) for name in CASES for processes in (1, 2)}, place)


def config(name: str, processes: int) -> dict[str, Any]:
    model, changes = CASES[name]
    split = {"parallel.num_processes": processes, "train.gradient_accumulation_steps": 2 // processes}
    base = {**BASE, "name": f"{name}-{processes}", "model": {"path": f"builtin:{model}"}}
    return differing(base, {"train.per_device_train_batch_size": None, **changes, **split})


@pytest.mark.parametrize("name", CASES)
def test_one_process_and_two_are_one_trajectory(runs: Mapping[str, Path], name: str) -> None:
    one, two = (runs[f"{name}-{processes}"] for processes in (1, 2))
    assert len(losses(one)) == 12 or "train.num_train_epochs" in CASES[name][1]
    assert_same(one, two, name)
    assert losses(one)[max(losses(one))] < losses(one)[1], "it learns"


@pytest.mark.parametrize("name", [name for name, (_, changes) in CASES.items() if "train.num_train_epochs" in changes])
def test_epochs_hold_every_row(runs: Mapping[str, Path], place: Path, name: str) -> None:
    """Tokens: one a character, and an end for the row, or for each of the prompt and the completion of T5."""
    rows = [json.loads(line) for line in (place / "rows.jsonl").read_text(encoding="utf-8").splitlines()]
    ends = 2 if name == "tokens-t5" else 1
    an_epoch = sum(len(row["prompt"]) + len(row["completion"]) + ends for row in rows)
    for processes in (1, 2):
        assert metrics(runs[f"{name}-{processes}"])[-1]["num_tokens"] == 2 * an_epoch
