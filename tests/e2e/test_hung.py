"""Workers that hang are found and named, with host, phase and step; the run ends or goes on, and leaves nothing."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.cli import (
    Result,
    alive,
    command_line,
    differing,
    folder_of,
    interrupt,
    largest_loss_difference,
    largest_weight_difference,
    logs,
    metrics,
    rank_states,
    reached,
    wait_until,
    worker_ids,
)
from tests.forked_runs import train
from tests.small_runs import PPO, SFT

pytestmark = pytest.mark.slow
NUM_STEPS = 40
CONFIG = differing(
    SFT,
    {
        "train.max_steps": NUM_STEPS,
        "train.save_steps": 5,
        "parallel": {"num_processes": 2, "heartbeat_timeout_seconds": 12},
    },
)
HOST = socket.gethostname()


def pid_of(folder: Path, rank_name: str, attempt: int = 1) -> int:
    """0 where it has not registered."""
    file = folder / f"attempts/{attempt}/workers/{rank_name}.json"
    return json.loads(file.read_text())["pid"] if file.is_file() else 0


def frozen(config: dict[str, Any], place: Path, rank_name: str, when: Callable[[Path], bool]) -> Result:
    """Stop a worker for good: none of its threads runs on."""

    def stop(process: subprocess.Popen[str], folder: Path) -> None:
        os.kill(pid_of(folder, rank_name), signal.SIGSTOP)

    return interrupt(config, cwd=place, when=when, do=stop)


def seen_after_a_checkpoint(folder: Path) -> bool:
    """Its agent says that it is in a step, and the checkpoint of step 2 is whole."""
    return (rank_states(folder).get("policy-rank1", {}).get("step") or 0) > 2


def nothing_left(folder: Path) -> bool:
    left = [entry for entry in Path("/proc").iterdir() if entry.name.isdecimal()]
    return alive(worker_ids(folder)) == [] and not any(str(folder) in command_line(int(entry.name)) for entry in left)


@pytest.mark.long
def test_a_frozen_worker_is_named(place: Path) -> None:
    config = CONFIG | {"name": "frozen", "train": {**CONFIG["train"], "max_steps": 5000, "save_steps": 2}}
    result, folder = frozen(config, place, "policy-rank1", seen_after_a_checkpoint), folder_of(config, place)
    assert result.code == 1, f"{result.stdout}\n{result.stderr}\n{logs(folder)}"
    first, second, third = result.stderr.splitlines()
    sentence = (
        rf"error: policy-rank1 on host {HOST} hangs: no sign of life for 12 s, last seen in phase [a-z ]+ of step \d+"
    )
    assert re.fullmatch(sentence, first), first
    assert re.fullmatch(r"  the newest checkpoint is step \d+; continue with --resume", second)
    assert third == f"  logs: {folder / 'attempts/1/logs'}"
    assert "most recent call first" in (folder / "attempts/1/logs/policy-rank0.log").read_text(), "where it waited"
    assert nothing_left(folder)


def test_a_frozen_worker_is_replaced(place: Path) -> None:
    straight = train({"straight": CONFIG | {"name": "straight"}}, place)["straight"]
    config = differing(CONFIG, {"name": "replaced", "parallel.max_restarts": 1})
    result, folder = frozen(config, place, "policy-rank0", reached(3)), folder_of(config, place)
    assert result.code == 0, f"{result.stdout}\n{result.stderr}\n{logs(folder)}"
    assert f"policy-rank0 on host {HOST} hangs: no sign of life for 12 s, last seen in phase " in result.stdout
    assert "; restart 1 of 1 from " in result.stdout
    assert result.stderr == ""
    assert [line["step"] for line in metrics(folder)] == list(range(1, NUM_STEPS + 1))
    assert largest_loss_difference(straight, folder) == largest_weight_difference(straight, folder) == 0
    assert nothing_left(folder)


def test_the_rank_that_the_others_wait_for_is_named(place: Path) -> None:
    """All of them beat, and none gets further: rank 0 opens a pipe that nobody reads, where its timeline was."""
    reward = PPO["reward"] | {"placement": "colocated"}
    parallel = {"num_processes": 2, "timeout_seconds": 600, "progress_timeout_seconds": 10, "max_restarts": 0}
    config = differing(PPO, {"name": "behind", "reward": reward, "parallel": parallel, "ppo.num_rollouts": 200})

    def block(process: subprocess.Popen[str], folder: Path) -> None:
        os.mkfifo(folder / "pipe")
        (folder / "pipe").replace(folder / "timeline/policy.jsonl")

    result, folder = interrupt(config, cwd=place, when=reached(2), do=block), folder_of(config, place)
    assert result.code == 1, f"{result.stdout}\n{result.stderr}\n{logs(folder)}"
    first, second = result.stderr.splitlines()[:2]
    sentence = rf"error: policy-rank0 on host {re.escape(HOST)} hangs: no progress for 10 s, in phase .+ of step \d+, "
    assert re.fullmatch(sentence + "and the others wait for it", first), first
    assert re.fullmatch(r"  the newest checkpoint is step \d+; continue with --resume", second)
    log = (folder / "attempts/1/logs/policy-rank0.log").read_text()
    assert "most recent call first" in log and 'timeline.py", line ' in log and " in span" in log
    assert nothing_left(folder)


@pytest.mark.long
def test_a_frozen_reward_group_is_replaced_alone(place: Path) -> None:
    """Long before the policy's own patience for an answer ends."""
    reward = {"model": {"path": "builtin:tiny-bert-classifier"}, "label": "positive"}
    config = PPO | {"name": "reward-frozen", "reward": reward | {"parallel": {"heartbeat_timeout_seconds": 12}}}
    pids: list[int] = []

    def stop(process: subprocess.Popen[str], folder: Path) -> None:
        pids.extend(pid_of(folder, name) for name in ("reward-rank0", "policy-rank0"))
        os.kill(pids[0], signal.SIGSTOP)
        wait_until(lambda: pid_of(folder, "reward-rank0") not in (0, pids[0]))

    result, folder = interrupt(config, cwd=place, when=reached(2), do=stop), folder_of(config, place)
    assert result.code == 0, f"{result.stdout}\n{result.stderr}\n{logs(folder)}"
    line = f"reward-rank0 on host {HOST} hangs: no sign of life for 12 s, last seen in phase "
    assert line in result.stdout
    assert "; restart 1 of 3 of group reward alone" in result.stdout
    assert pid_of(folder, "policy-rank0") == pids[1]
    beside = differing(config, {"name": "colocated", "reward": reward | {"placement": "colocated"}})
    straight = train({"colocated": beside}, place)["colocated"]
    assert largest_weight_difference(straight, folder) < 1e-5
    assert nothing_left(folder)
