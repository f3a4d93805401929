"""A PPO run of two groups: whatever befalls the reward group, the run ends like one whose rewards come from its own
process, and without a restart of the policy; and when the policy dies, nothing is left, and the run goes on by hand."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from concurrent.futures import Future
from pathlib import Path

import pytest

from tests import small_runs
from tests.cli import (
    alive,
    differing,
    folder_of,
    interrupt,
    logs,
    reached,
    scaleup,
    wait_until,
)
from tests.small_runs import same_rollouts

pytestmark = pytest.mark.slow
ROLLOUTS = 30
"""Enough that none is over before what befalls it."""
PPO = differing(small_runs.PPO, {"ppo.num_rollouts": ROLLOUTS, "train.learning_rate": 1e-4})


def pid_of(folder: Path, rank_name: str) -> int:
    """Of the newest worker of that name that has registered; 0 where there is none."""
    file = folder / "attempts/1/workers" / f"{rank_name}.json"
    return json.loads(file.read_text())["pid"] if file.is_file() else 0


def test_the_reward_group_is_killed_and_then_grows(place: Path, colocated: Future[Path]) -> None:
    config = PPO | {"name": "killed"}
    pids: list[int] = []

    def kill_and_resize(process: subprocess.Popen[str], folder: Path) -> None:
        pids.extend(pid_of(folder, name) for name in ("policy-rank0", "reward-rank0"))
        os.kill(pids[-1], signal.SIGKILL)
        wait_until(lambda: pid_of(folder, "reward-rank0") not in (0, pids[1]))
        pids.append(pid_of(folder, "reward-rank0"))
        assert scaleup("resize", folder, "reward", "2", cwd=place).code == 0
        wait_until(lambda: pid_of(folder, "reward-rank1") != 0)

    result = interrupt(config, cwd=place, when=reached(2), do=kill_and_resize)
    folder = folder_of(config, place)
    assert result.code == 0, f"{result.stdout}\n{result.stderr}\n{logs(folder)}"
    assert "reward-rank0 was killed by signal 9; restart 1 of 3 of group reward alone" in result.stdout
    assert "group reward starts again with 2 process(es)" in result.stdout
    assert [attempt.name for attempt in (folder / "attempts").iterdir()] == ["1"]
    assert pid_of(folder, "policy-rank0") == pids[0]
    same_rollouts(folder, colocated.result(), ROLLOUTS)


@pytest.mark.long
def test_the_policy_is_killed_and_the_run_goes_on_by_hand(place: Path, colocated: Future[Path]) -> None:
    config = PPO | {"name": "by-hand"}
    pids: list[int] = []

    def kill(process: subprocess.Popen[str], folder: Path) -> None:
        pids.extend(pid_of(folder, name) for name in ("policy-rank0", "reward-rank0"))
        os.kill(pids[0], signal.SIGKILL)

    result = interrupt(config, cwd=place, when=reached(3), do=kill)
    folder = folder_of(config, place)
    assert result.code == 1
    assert "error: policy-rank0 was killed by signal 9" in result.stderr
    assert alive(pids) == []
    secret = json.loads((folder / "bridge.json").read_text())["secret"]
    assert (folder / "bridge.json").stat().st_mode & 0o077 == 0
    told = [file for file in folder.rglob("*") if file.is_file() and file.name != "bridge.json"]
    assert not any(secret.encode() in file.read_bytes() for file in told)

    assert scaleup("resize", folder, "reward", "1", cwd=place).code == 0
    launched = [by_hand(folder, group) for group in ("reward", "policy")]
    outputs = [process.communicate(timeout=120)[0] for process in launched]
    assert [process.returncode for process in launched] == [0, 0], "\n".join(outputs)
    same_rollouts(folder, colocated.result(), ROLLOUTS)


def by_hand(folder: Path, group: str) -> subprocess.Popen[str]:
    command = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--config_file",
        str(folder / f"launch/{group}.yaml"),
    ]
    command += ["-m", "scaleup.worker", str(folder), group]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
