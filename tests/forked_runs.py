"""Whole runs, from config to manifest, whose workers are forked from one process: two seconds each instead of twelve.

As `scaleup run` does them: the checks, the plan, the run folder, and in each rank the worker's own main. What is left
out is `accelerate launch` and the node agent above it, which tests/e2e and tests/distributed are about. That a run from
the command line is the same to the last bit is seen in test_strategies, which kills and resumes such ones."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

from scaleup.artifacts.checkpoints import latest_checkpoint
from scaleup.artifacts.run_folder import Attempt, RunFolder
from scaleup.plan import deepspeed
from tests.cli import folder_of, logs, reached, wait_until
from tests.forked import be_ready_to_fork, in_children, prepared, start_ranks, wait_for

REPOSITORY = Path(__file__).parent.parent
AT_ONCE = 2
TIMEOUT = 280.0
"""For all runs of a call, which the first test that looks at one waits for."""

SHARED = ("ddp", "zero1", "zero2", "zero3", "fsdp2")
"""Names the strategies of several processes."""


def four_steps(processes: int) -> dict[str, Any]:
    """Returns the `train` section of a short run by which strategies are compared: batches of 4 rows, on one process at
    once, on two of them 2 each. By SGD, as Adam would hide a wrong scale of the gradient."""
    return {
        "max_steps": 4,
        "learning_rate": 0.1,
        "optimizer": "sgd",
        "lr_scheduler_type": "constant",
        "per_device_train_batch_size": 4 // processes,
        "per_device_eval_batch_size": 3,
        "eval_steps": 2,
    }


@dataclass(frozen=True)
class Leg:
    """One start of a run, or of what an earlier start has left of it."""

    config: Mapping[str, Any]
    kill_after: int | None = None
    """Every rank is killed (SIGKILL) once so many steps after the first are logged and no checkpoint is being written;
    None: the run goes to its end."""
    zero: Mapping[str, Any] = field(default_factory=dict)
    """ZeRO-3's settings that are other than the plan's own."""


def train(configs: Mapping[str, Mapping[str, Any]], cwd: Path, timeout: float = TIMEOUT) -> dict[str, Path]:
    """The folder of each run. Raises AssertionError, with the logs of those that failed, once all have ended."""
    live({name: [Leg(config)] for name, config in configs.items()}, cwd, timeout)
    return {name: folder_of(config, cwd) for name, config in configs.items()}


def live(lives: Mapping[str, Sequence[Leg]], cwd: Path, timeout: float = TIMEOUT) -> dict[str, list[int]]:
    """Take each run through its legs, two runs at a time. The step that each leg went on with.

    Raises AssertionError, with the logs of those that failed, once all have ended."""
    asked = {name: [vars(leg) for leg in legs] for name, legs in lives.items()}
    command = [sys.executable, "-m", "tests.forked_runs", str(cwd)]
    streams = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, cwd=REPOSITORY, text=True, **streams) as process:
        try:
            stdout, stderr = process.communicate(json.dumps(asked), timeout=timeout)
        except subprocess.TimeoutExpired:
            process.kill()  # the kernel tells what it forked
            raise AssertionError(f"{list(lives)} took longer than {timeout} s\n{logs(cwd)}") from None
    assert process.returncode == 0, f"{stdout}\n{stderr}"
    ends: dict[str, list[int] | str] = json.loads(stdout.splitlines()[-1])  # libraries say things above it
    failed = {name: error for name, error in ends.items() if isinstance(error, str)}
    assert not failed, "\n".join(f"=== {name}: {error}" for name, error in failed.items())
    return ends  # type: ignore[return-value]


def main() -> None:
    cwd, asked = Path(sys.argv[1]), json.load(sys.stdin)
    be_ready_to_fork()
    os.chdir(cwd)
    print(json.dumps(dict(in_children({name: partial(go, legs) for name, legs in asked.items()}))))


def go(legs: Sequence[Mapping[str, Any]]) -> list[int] | str:
    """The step that each leg went on with, or why one failed: the other runs are to have their say too."""
    try:
        return [go_on(Leg(**leg)) for leg in legs]
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def go_on(leg: Leg) -> int:
    """The step that it went on with."""
    sharded = deepspeed._sharded_parameters
    with patch.object(deepspeed, "_sharded_parameters", lambda offloads: {**sharded(offloads), **leg.zero}):
        run, plan = prepared(leg.config, resume=True)
    group = plan.group("policy")
    with run.locked():
        newest = latest_checkpoint(run.checkpoints)
        first_step = newest.step + 1 if newest else 1
        attempt = run.new_attempt()
        rank_logs = [attempt.logs / f"policy-rank{rank}.log" for rank in range(group.num_processes)]
        ranks = start_ranks(group, rank_logs, lambda rank: be_worker(run, attempt))
        if leg.kill_after is not None:
            reached_it = reached(first_step + leg.kill_after)
            wait_until(lambda: reached_it(run.path) and not any(run.checkpoints.glob(".step-*")), every=0.002)
            for rank in ranks:
                os.kill(rank, signal.SIGKILL)
        codes = wait_for(ranks)
    expected = 0 if leg.kill_after is None else -signal.SIGKILL
    assert codes == [expected] * len(ranks), f"exit codes {codes}\n{logs(run.path)}"
    return first_step


def be_worker(run: RunFolder, attempt: Attempt) -> None:
    from scaleup import worker

    sys.argv = ["scaleup.worker", str(run.path), "policy", "--attempt", str(attempt.number)]
    worker.main()


if __name__ == "__main__":
    main()
