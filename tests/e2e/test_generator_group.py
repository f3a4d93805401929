"""Runs whose responses an engine in a group of its own draws: whatever befalls the engine or the policy, they end like
one whose policy draws for itself. The engine is a stand-in for vLLM, which has tests of its own (tests/vllm)."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from scaleup.artifacts.checkpoints import memory_folder
from tests import small_runs
from tests.cli import alive, differing, folder_of, interrupt, logs, metrics, reached, run, scaleup, wait_until
from tests.small_runs import same_rollouts
from tests.stand_in_engine import stand_in_python

pytestmark = pytest.mark.slow
ROLLOUTS, LONG = 12, 100
RATIO = "sampling/importance_sampling_ratio/max"
PPO = differing(
    small_runs.PPO,
    {
        "ppo.num_rollouts": ROLLOUTS,
        "train.learning_rate": 1e-4,
        "reward.placement": "colocated",
        "ppo.num_ppo_epochs": 2,
    },
)


@pytest.fixture(scope="module")
def engine(place: Path) -> dict[str, dict[str, object]]:
    """Changes to a config by which the stand-in draws."""
    return {"generator": {"engine": "vllm", "python": str(stand_in_python(place / "environment"))}}


def pid_of(folder: Path) -> int:
    """Of the engine that runs, by what the kernel says of processes; 0 where there is none."""
    for process in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            arguments = process.read_bytes().split(b"\0")
        except OSError:
            continue
        if b"scaleup.generator.engine" in arguments and os.fsencode(folder) in arguments:
            return int(process.parent.name)
    return 0


@pytest.mark.parametrize(
    "changes",
    [
        {"parallel": {"num_processes": 2, "strategy": "fsdp2"}},
        pytest.param({"adapter": {"type": "lora", "r": 4}}, marks=pytest.mark.long),
        {"parallel": {"num_processes": 2, "strategy": "zero3"}},
        pytest.param({"reward": PPO["reward"] | {"placement": "group"}}, marks=pytest.mark.long),
    ],
    ids=["fsdp2", "lora", "zero3", "beside-rewards"],
)
def test_a_run_by_an_engine_is_the_run_without_one(
    place: Path,
    engine: dict[str, dict[str, object]],
    pool: ThreadPoolExecutor,
    changes: dict[str, object],
    request: pytest.FixtureRequest,
) -> None:
    name = request.node.callspec.id
    alone = pool.submit(run, PPO | changes | {"name": f"alone-{name}"}, cwd=place)
    drawn = run(PPO | changes | engine | {"name": f"drawn-{name}"}, cwd=place)
    same_rollouts(drawn, alone.result(), ROLLOUTS)
    compared = [line for line in metrics(drawn) if "sampling/equal_tokens" in line]
    assert len(compared) == ROLLOUTS and all(line["sampling/equal_tokens"] == 1 for line in compared)
    assert not memory_folder(drawn, "generator").exists(), "nothing is left in main memory"


def reached_after(folder: Path) -> Callable[[], bool]:
    """Whether a further rollout has been logged."""
    step = metrics(folder)[-1]["step"] + 1
    return lambda: reached(step)(folder)


@pytest.mark.long
@pytest.mark.timeout(600)
def test_the_engine_is_killed_stopped_and_resized_ten_times(
    place: Path, engine: dict[str, dict[str, object]], pool: ThreadPoolExecutor
) -> None:
    """At random moments, also while it loads."""
    seed = int(os.environ.get("SCALEUP_TEST_SEED", "0"))
    print(f"the faults are drawn with SCALEUP_TEST_SEED={seed}")
    chance = random.Random(seed)
    kinds = ["killed"] * 5 + ["resized"] * 3 + ["stopped"] * 2
    chance.shuffle(kinds)
    quick = {"timeout_seconds": 5.0, "parallel": {"heartbeat_timeout_seconds": 15}}
    patient = engine["generator"] | quick | {"max_restarts": 10}
    long = differing(PPO, {"ppo.num_rollouts": LONG})
    config, pids, sizes = long | {"name": "faults", "generator": patient}, [], [1]
    calm = pool.submit(run, config | {"name": "calm"}, cwd=place)

    def hurt(process: subprocess.Popen[str], folder: Path) -> None:
        for kind in kinds:
            wait_until(lambda: pid_of(folder) not in (0, *pids))
            pids.append(pid_of(folder))
            if kind == "stopped":  # one that never beat is waited for until reconnect_seconds are over
                wait_until(reached_after(folder))
            moment = time.monotonic() + 2 * chance.random()
            wait_until(lambda moment=moment: time.monotonic() > moment)
            print(f"{kind} after rollout {metrics(folder)[-1]['step']}", flush=True)
            if kind == "resized":
                sizes.append(3 - sizes[-1])
                assert scaleup("resize", folder, "generator", str(sizes[-1]), cwd=place).code == 0
                assert json.loads((folder / "launch/generator.json").read_text())["tensor_parallel_size"] == sizes[-1]
            else:
                os.kill(pids[-1], signal.SIGKILL if kind == "killed" else signal.SIGSTOP)

    result = interrupt(config, cwd=place, when=reached(1), do=hurt)
    folder = folder_of(config, place)
    assert result.code == 0, f"{result.stdout}\n{result.stderr}\n{logs(folder)}"
    assert len(set(pids)) == 10 and alive(pids) == [], "each fault came to another engine"
    assert result.stdout.count("of group generator alone") == 7
    assert sum(map(result.stdout.count, ("group generator gave no answers", "no sign of life"))) == 2
    assert [attempt.name for attempt in (folder / "attempts").iterdir()] == ["1"], "the policy was never restarted"
    same_rollouts(folder, calm.result(), LONG)


def test_the_policy_is_killed_and_the_run_goes_on(
    place: Path, engine: dict[str, dict[str, object]], colocated: Future[Path]
) -> None:
    config = PPO | engine | {"name": "goes-on"}
    pids: list[int] = []

    def kill(process: subprocess.Popen[str], folder: Path) -> None:
        policy = json.loads((folder / "attempts/1/workers/policy-rank0.json").read_text())["pid"]
        pids.extend([policy, pid_of(folder)])
        os.kill(policy, signal.SIGKILL)

    result = interrupt(config, cwd=place, when=reached(3), do=kill)
    folder = folder_of(config, place)
    assert result.code == 1 and "error: policy-rank0 was killed by signal 9" in result.stderr
    assert alive(pids) == []
    assert not memory_folder(folder, "generator").exists(), "nothing is left in main memory"
    run(config, "--resume", cwd=place)
    same_rollouts(folder, colocated.result(), ROLLOUTS)


def test_a_run_that_draws_ahead_is_one_trajectory(
    place: Path, engine: dict[str, dict[str, object]], pool: ThreadPoolExecutor
) -> None:
    """On one process, and on two whose policy is killed and goes on from a checkpoint with what was drawn ahead."""
    ahead = {"generator": engine["generator"] | {"staleness": 1}}
    straight = pool.submit(run, PPO | ahead | {"name": "ahead"}, cwd=place)
    config = PPO | ahead | {"name": "ahead-cut", "parallel": {"num_processes": 2}}

    def kill(process: subprocess.Popen[str], folder: Path) -> None:
        os.kill(json.loads((folder / "attempts/1/workers/policy-rank1.json").read_text())["pid"], signal.SIGKILL)

    assert interrupt(config, cwd=place, when=reached(3), do=kill).code == 1
    cut = run(config, "--resume", cwd=place)
    same_rollouts(cut, straight.result(), ROLLOUTS)
    ratios = [line[RATIO] for line in metrics(cut) if RATIO in line]
    assert min(ratios[1:]) > 1.00001, "by the weights from before"
