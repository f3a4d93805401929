"""Eight agents as `scaleup run` starts them, over ranks that are small processes: what the run folder sees of them, and
what becomes of a run of many nodes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow
REPOSITORY = Path(__file__).parent.parent.parent
NODES, RANKS, SPEED = 8, 4, 5


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    """What `benchmarks/control_plane.py` measures, with time that passes faster for the agents."""
    command = [sys.executable, "benchmarks/control_plane.py", "--nodes", str(NODES), "--ranks", str(RANKS)]
    command += ["--speed", str(SPEED)]
    ended = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=280)
    assert ended.returncode == 0, ended.stderr
    measured: dict[str, Any] = json.loads(ended.stdout)
    return measured


def test_the_shared_folder_sees_less_than_one_operation_a_node_every_three_seconds(found: dict[str, Any]) -> None:
    counted = found["steady operations"]
    assert counted["by ranks"] == 0, "they tell their agent on the node's own disk"
    assert counted["written by agents"] >= NODES
    assert sum(counted.values()) <= NODES * found["steady seconds"] * SPEED / 3


def test_a_hung_rank_of_another_node_is_named_and_the_run_goes_on(found: dict[str, Any]) -> None:
    sentence = found["sentence"]
    assert sentence.startswith("policy-rank17 on host ") and sentence.endswith(", and the others wait for it")


def test_a_signal_to_one_node_stops_all_and_nothing_is_left(found: dict[str, Any]) -> None:
    assert (found["exit codes"], found["folders left"]) == ([75], 0)
