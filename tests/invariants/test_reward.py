"""A reward model is the same, and normalised alike, on one process and on two, sharded, or killed and gone on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli import largest_loss_difference, largest_weight_difference, losses, metrics
from tests.distributed.test_runtime import python


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, repository: Path) -> Path:
    folder = tmp_path_factory.mktemp("reward")
    result = python("-m", "tests.invariants.reward_runs", folder, cwd=repository, timeout=300)
    assert result.code == 0, f"{result.stdout}\n{result.stderr}"
    return folder / "runs"


@pytest.mark.parametrize(
    ("one", "other", "bound"),
    [
        ("one", "two", 1e-5),
        ("two", "killed", 0.0),
        ("one", "sharded", 1e-5),
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
