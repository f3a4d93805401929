"""Runs whose workers die are started again, as often as they may be, and end like one that nobody touched.

One process where one is enough: a start of two takes seconds longer."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from scaleup.artifacts.checkpoints import latest_checkpoint
from tests.cli import (
    Result,
    alive,
    children,
    command_line,
    differing,
    folder_of,
    interrupt,
    largest_loss_difference,
    largest_weight_difference,
    logs,
    metrics,
    reached,
    start,
    wait_until,
    worker_ids,
    write_config,
)
from tests.forked_runs import train
from tests.small_runs import SFT

NUM_STEPS = 48
CONFIG = differing(
    SFT,
    {
        "train.max_steps": NUM_STEPS,
        "train.save_steps": 3,
        "parallel": {"num_processes": 2, "max_restarts": 3},
    },
)
ALONE = {"parallel.num_processes": 1, "train.max_steps": 1000}


@pytest.fixture(scope="module")
def straight(place: Path) -> Path:
    return train({"straight": CONFIG | {"name": "straight"}}, place)["straight"]


@pytest.fixture(scope="module")
def chance() -> random.Random:
    seed = int(os.environ.get("SCALEUP_TEST_SEED", "0"))
    print(f"the kills of test_restarts are drawn with SCALEUP_TEST_SEED={seed}")
    return random.Random(seed)


def kill_in_turn(process: subprocess.Popen[str], folder: Path, steps: list[int], ranks: list[int]) -> None:
    """In each attempt one worker, once the run has logged a step."""
    for attempt, (step, rank) in enumerate(zip(steps, ranks, strict=True), start=1):
        registered = f"attempts/{attempt}/workers/policy-rank{rank}.json"
        wait_until(lambda: process.poll() is not None or ((folder / registered).is_file()), every=0.002)  # noqa: B023
        wait_until(lambda: process.poll() is not None or reached(step)(folder), every=0.002)  # noqa: B023
        assert process.poll() is None, f"ended before step {step}"
        os.kill(json.loads((folder / registered).read_text())["pid"], signal.SIGKILL)


def killed(config: dict[str, Any], place: Path, steps: list[int], ranks: list[int]) -> Result:
    return interrupt(
        config,
        cwd=place,
        when=lambda folder: (folder / "attempts" / "1").is_dir(),
        do=lambda process, folder: kill_in_turn(process, folder, steps, ranks),
    )


def attempts(folder: Path) -> list[str]:
    return sorted(entry.name for entry in (folder / "attempts").iterdir())


def assert_same_end(folder: Path, straight: Path, most: float = 0) -> None:
    assert [line["step"] for line in metrics(folder)] == list(range(1, NUM_STEPS + 1))
    difference = largest_loss_difference(straight, folder), largest_weight_difference(straight, folder)
    print(f"{folder.name}: largest difference of a loss {difference[0]:.1e}, of a weight {difference[1]:.1e}")
    assert max(difference) <= most
    assert alive(worker_ids(folder)) == []


@pytest.mark.slow
def test_kills_do_not_move_the_trajectory(place: Path, chance: random.Random, straight: Path) -> None:
    config = CONFIG | {"name": "killed"}
    steps = [chance.randint(low, low + 6) for low in (5, 25)]
    ranks = [chance.randrange(2) for _ in steps]
    folder = folder_of(config, place)
    result = killed(config, place, steps, ranks)
    assert result.code == 0, f"{result.stdout}\n{result.stderr}\n{logs(folder)}"
    assert_same_end(folder, straight)
    assert attempts(folder) == ["1", "2", "3"]
    for number, rank in enumerate(ranks, start=1):
        assert f"policy-rank{rank} was killed by signal 9; restart {number} of 3 from step " in result.stdout
        assert (folder / "attempts" / str(number) / "logs" / f"policy-rank{rank}.log").is_file()
    assert result.stderr == ""


@pytest.mark.slow
@pytest.mark.parametrize("num_processes", [pytest.param(1, marks=pytest.mark.long), 2])
def test_launchers_leave_signals_to_the_agent(place: Path, num_processes: int) -> None:
    """Slurm signals every process of a job. torchrun would give its workers 30 s, and kill them while they save."""
    config = differing(CONFIG, {"name": f"launchers-{num_processes}", "parallel.num_processes": num_processes})

    def signal_launchers(process: subprocess.Popen[str], folder: Path) -> None:
        launchers = [pid for pid in children(process.pid) if "accelerate.commands.launch" in command_line(pid)]
        assert launchers
        for launcher in launchers:
            os.kill(launcher, signal.SIGTERM)

    result = interrupt(config, cwd=place, when=reached(3), do=signal_launchers)
    folder = folder_of(config, place)
    assert result.code == 0, f"{result.stdout}\n{result.stderr}\n{logs(folder)}"
    assert attempts(folder) == ["1"]
    assert len(metrics(folder)) == NUM_STEPS


@pytest.mark.slow
@pytest.mark.long
def test_more_deaths_than_restarts(place: Path) -> None:
    config = differing(CONFIG, {**ALONE, "name": "too-many", "parallel.max_restarts": 1})
    folder = folder_of(config, place)
    result = killed(config, place, [5, 40], [0, 0])
    assert result.code == 1, f"{result.stdout}\n{result.stderr}\n{logs(folder)}"
    latest = latest_checkpoint(folder / "checkpoints")
    assert latest is not None
    assert result.stderr.splitlines() == [
        "error: policy-rank0 was killed by signal 9",
        "  after 1 restart",
        f"  the newest checkpoint is step {latest.step}; continue with --resume",
        f"  logs: {folder / 'attempts' / '2' / 'logs'}",
    ]
    assert attempts(folder) == ["1", "2"]
    assert alive(worker_ids(folder)) == []
    assert not (folder / "manifest.json").exists()


def test_a_stop_before_a_restart(place: Path) -> None:
    config = differing(CONFIG, {**ALONE, "name": "stopped"})

    def kill_then_stop(process: subprocess.Popen[str], folder: Path) -> None:
        kill_in_turn(process, folder, [5], [0])
        assert process.stdout is not None
        while "restart 1 of 3" not in process.stdout.readline():
            assert process.poll() is None
        process.terminate()

    result = interrupt(config, cwd=place, when=lambda folder: (folder / "attempts" / "1").is_dir(), do=kill_then_stop)
    folder = folder_of(config, place)
    assert result.code == 75, f"{result.stdout}\n{result.stderr}\n{logs(folder)}"
    assert "was stopped and can go on" in result.stdout
    assert result.stderr == ""
    assert attempts(folder) == ["1"]


@pytest.mark.slow
def test_a_worker_that_outlived_its_launcher_ends_before_the_run_goes_on(place: Path) -> None:
    """It hangs (SIGSTOP) while `scaleup run` is killed, so it does not hear of that until it is too late."""
    config = differing(CONFIG, {"name": "leftover", "parallel.num_processes": 1})
    held: list[int] = []

    def hold_and_kill(process: subprocess.Popen[str], folder: Path) -> None:
        held.extend(worker_ids(folder))
        os.kill(held[0], signal.SIGSTOP)
        launchers = children(process.pid)
        process.kill()
        wait_until(lambda: not alive(launchers))

    folder = folder_of(config, place)
    interrupt(config, cwd=place, when=reached(5), do=hold_and_kill)
    assert alive(held) == held
    with start("run", write_config(config, place), "--resume", cwd=place) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line == f"waiting for processes that an earlier start of this run left behind: {held[0]}\n"
        assert attempts(folder) == ["1"]
        os.kill(held[0], signal.SIGCONT)  # it saves now, as it would have before
        stdout, stderr = process.communicate(timeout=120)
    assert process.returncode == 0, f"{stdout}\n{stderr}\n{logs(folder)}"
    assert alive(held) == []
    assert [line["step"] for line in metrics(folder)] == list(range(1, NUM_STEPS + 1))
    assert attempts(folder) == ["1", "2"]


@pytest.mark.slow
def test_two_nodes_restart_together(place: Path, straight: Path, chance: random.Random) -> None:
    """A kill on either node; the other one hears of it, and both begin the next attempt. Under ZeRO-2, which Accelerate
    would start over ssh if the launch file did not say otherwise."""
    nodes = {"num_processes": 2, "num_nodes": 2, "max_restarts": 2}
    config = differing(CONFIG, {"name": "two-nodes", "parallel": nodes | {"strategy": "zero2"}})
    folder = folder_of(config, place)
    steps, ranks = [chance.randint(5, 11), chance.randint(25, 31)], chance.sample((0, 1), 2)
    file = write_config(config, place)
    with start("run", file, cwd=place) as first, start("run", file, "--node-rank", "1", cwd=place) as second:
        try:
            kill_in_turn(first, folder, steps, ranks)
            ends = [process.communicate(timeout=120) for process in (second, first)]
        except (AssertionError, subprocess.TimeoutExpired) as error:
            first.kill()
            second.kill()
            raise AssertionError(f"{error}\n{logs(folder)}") from None
    assert (first.returncode, second.returncode) == (0, 0), f"{ends}\n{logs(folder)}"
    for number, rank in enumerate(ranks, start=1):
        assert f"policy-rank{rank} was killed by signal 9; restart {number} of 2 from step " in ends[1][0]
    assert attempts(folder) == ["1", "2", "3"]
    assert_same_end(folder, straight, most=1e-5)  # a process has twice the threads here, which sum in another order
