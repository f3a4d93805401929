"""Reward groups that are killed, stopped or restarted with another size, ten times over: the policy, never restarted,
ends as if nothing had happened. Stage ppo has one, stage rl two side by side."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from scaleup.distributed.signals import STOPPED
from tests.cli import largest_weight_difference, metrics
from tests.distributed.test_runtime import python

pytestmark = pytest.mark.timeout(900)  # the first waits for all; on a free machine it takes half a minute
PARTS = ("model", "values")
TOLERANCE = {"ppo": 1e-6, "rl": 1e-5}
"""A sharded group scores in other batches: float32 sums in another order. Stage rl has three times as many rollouts."""


@pytest.fixture(scope="module", params=["ppo", pytest.param("rl", marks=pytest.mark.slow)])
def stage(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def place(stage: str, tmp_path_factory: pytest.TempPathFactory, repository: Path) -> Path:
    folder = tmp_path_factory.mktemp("faults")
    print(f"the faults are drawn with SCALEUP_TEST_SEED={os.environ.get('SCALEUP_TEST_SEED', '0')}")
    result = python("-m", "tests.distributed.ppo_faults", folder, stage, cwd=repository, timeout=840)
    assert result.code == 0, f"{result.stdout}\n{result.stderr}"
    return folder


@pytest.fixture(scope="module")
def outcome(place: Path) -> dict[str, Any]:
    return json.loads((place / "faults.json").read_text())


def measured(folder: Path) -> list[dict[str, float]]:
    """Of each rollout, without what depends on the machine."""
    return [
        {name: value for name, value in line.items() if not name.startswith(("time/", "memory"))}
        for line in metrics(folder)
    ]


@pytest.mark.covers("ppo")
def test_the_trajectory_and_the_final_policy_are_those_of_a_run_nobody_touched(stage: str, place: Path) -> None:
    tolerance = TOLERANCE[stage]
    calm, faults = (measured(place / "runs" / name) for name in ("calm", "faults"))
    assert len(calm) == len(faults)
    for one, other in zip(calm, faults, strict=True):
        assert one == pytest.approx(other, rel=tolerance, abs=tolerance)
    patterns = [f"{part.name}/*.safetensors" for part in (place / "runs/calm").iterdir() if part.name in PARTS]
    assert "model/*.safetensors" in patterns
    for pattern in patterns:
        assert largest_weight_difference(place / "runs/calm", place / "runs/faults", pattern) <= tolerance


def test_every_fault_cost_the_policy_its_reward_group(outcome: dict[str, Any]) -> None:
    """None came to a group that did not serve yet, or when all was over."""
    assert len(outcome["faults"]) == 10
    assert outcome["lost"] == outcome["replaced"] >= 10


def test_every_group_ended_by_itself_or_as_it_was_ended(outcome: dict[str, Any]) -> None:
    for fault in outcome["faults"]:
        codes, victims = fault["codes"], [fault["codes"][rank] for rank in fault["victims"]]
        if fault["kind"] == "killed":
            assert set(victims) == {-signal.SIGKILL}
        elif fault["kind"] == "stopped":  # and continued, when another group had its place
            assert set(codes) <= {1, 3}
        else:
            assert STOPPED in victims


def test_the_rewards_tell_responses_apart_and_the_policy_moves(place: Path) -> None:
    """Else everything would be equal to everything."""
    lines = measured(place / "runs/calm")
    spreads = [line.get("objective/scores_std", line.get("reward_std", 0.0)) for line in lines]
    assert min(spreads) > 1e-2
    assert max(abs(line.get("objective/kl", line.get("kl_response", 0.0))) for line in lines) > 1e-2
