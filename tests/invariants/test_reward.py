"""A reward model is the same, and normalised alike, on one process and on two, sharded, or killed and gone on."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.cli import differing, largest_loss_difference, largest_weight_difference, losses, metrics
from tests.forked_runs import Leg, live

CONFIG: dict[str, Any] = {
    "stage": "reward",
    "model": {"path": "builtin:tiny-llama"},
    "data": {
        "train": "rows.jsonl",
        "validation": "held.jsonl",
        "prompt": "{ask}",
        "completions": "answers",
        "ratings": "stars",
        "margin": "stars",
        "max_length": 40,
    },
    "reward": {"center_coefficient": 0.05},
    "train": {
        "num_train_epochs": 1,
        "optimizer": "sgd",
        "learning_rate": 0.05,
        "global_batch_size": 4,
        "per_device_train_batch_size": 2,
        "save_steps": 4,
        "eval_steps": 4,
    },
}
TWO = {"parallel": {"strategy": "ddp", "num_processes": 2}}
LORA = {"adapter": {"type": "lora", "r": 2}}
RUNS: dict[str, dict[str, Any]] = {
    "one": {},
    "two": TWO,
    "killed": TWO,
    "sharded": {"parallel": {"strategy": "zero3", "num_processes": 2}},
    "sharded-fsdp2": {"parallel": {"strategy": "fsdp2", "num_processes": 2}},
    "lora": LORA,
    "lora-killed": LORA,
}


def rows(file: Path, count: int) -> None:
    """Rankings of two or three answers, some of them tied."""
    chance = random.Random(file.name)
    made = []
    for _ in range(count):
        answers = ["".join(chance.choices("abcx ", k=chance.randint(1, 14))) + "." for _ in range(chance.randint(2, 3))]
        stars = [chance.randint(0, 2) for _ in answers]
        made.append({"ask": "q" * chance.randint(1, 9) + "?", "answers": answers, "stars": stars})
    file.write_text("".join(json.dumps(row) + "\n" for row in made), encoding="utf-8")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two are killed after the checkpoint of step 4, and go on from there."""
    place = tmp_path_factory.mktemp("reward")
    rows(place / "rows.jsonl", 24)
    rows(place / "held.jsonl", 7)
    lives = {}
    for name, changes in RUNS.items():
        last = Leg(differing(CONFIG | {"name": name}, changes))
        lives[name] = [replace(last, kill_after=4), last] if name.endswith("killed") else [last]
    began = live(lives, place)
    assert all(steps[-1] > 4 for name, steps in began.items() if name.endswith("killed"))
    return place / "runs"


@pytest.mark.parametrize(
    ("one", "other", "bound"),
    [
        ("one", "two", 1e-5),
        ("two", "killed", 0.0),
        ("one", "sharded", 1e-5),
        ("one", "sharded-fsdp2", 1e-5),
        ("lora", "lora-killed", 0.0),
    ],
)
def test_one_trajectory(runs: Path, one: str, other: str, bound: float) -> None:
    left, right = runs / one, runs / other
    assert len(losses(left)) > 6
    assert largest_loss_difference(left, right) <= bound
    assert largest_weight_difference(left, right) <= bound
    ours, theirs = (json.loads((run / "model/reward.json").read_text()) for run in (left, right))
    assert ours["mean"] == pytest.approx(theirs["mean"], abs=1e-5)
    assert ours["std"] == pytest.approx(theirs["std"], abs=1e-5)


def test_the_run_learned_and_counted(runs: Path) -> None:
    found = json.loads((runs / "one/manifest.json").read_text())["metrics"]
    rows = [json.loads(line) for line in (runs.parent / "rows.jsonl").read_text().splitlines()]
    tied = sum(a == b for row in rows for i, a in enumerate(row["stars"]) for b in row["stars"][:i])
    held = [json.loads(line) for line in (runs.parent / "held.jsonl").read_text().splitlines()]
    tied += sum(a == b for row in held for i, a in enumerate(row["stars"]) for b in row["stars"][:i])
    assert found["left_out_tied"] == tied > 0
    assert found["rows_left_out"] == sum(count for key, count in found.items() if key.startswith("left_out_"))
    first, last = (line["eval_loss"] for line in metrics(runs / "one") if "eval_loss" in line)
    assert last < first  # on held-out pairs: a step's own loss depends on its margins
    assert 0.0 <= found["eval_calibration_error"] <= 1.0
