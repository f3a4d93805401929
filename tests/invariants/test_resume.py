"""A run that was killed, stopped and killed again ends like one that was not: same losses, same weights, bit by bit.

One run folder lives through everything, an attempt each: a worker is killed outright at a random step; SIGTERM; the
processes above the workers are killed (or all of them), and what they left on the disk is damaged; then the run ends.
For one process, and for two with dropout, whose random state must come back on each rank. The lives are those of runs
from the command line; the runs that nobody touched are forked."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file

from scaleup.artifacts.checkpoints import latest_checkpoint, whole_checkpoints
from scaleup.models.builtin import build
from tests.cli import (
    Result,
    alive,
    children,
    differing,
    interrupt,
    largest_loss_difference,
    largest_weight_difference,
    losses,
    metrics,
    reached,
    run,
    tensorboard,
    wait_until,
    worker_ids,
)
from tests.forked_runs import train

pytestmark = pytest.mark.slow
NUM_STEPS = 48
SAVE_STEPS = 3

BASE: dict[str, Any] = {
    "stage": "sft",
    "model": {"path": "builtin:tiny-llama"},
    "data": {"train": "rows.jsonl", "prompt": "{prompt}", "completion": "{completion}", "max_length": 128},
    "train": {
        "max_steps": NUM_STEPS,
        "learning_rate": 1e-3,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 4,
        "optimizer": "adamw",
        "weight_decay": 0.01,
        "save_steps": SAVE_STEPS,
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 2,
    },
    "parallel": {"num_processes": 1},
}
CASES = {1: {}, 2: {"model.path": "gpt2-with-dropout", "parallel.num_processes": 2}}


@dataclass
class Interruption:
    """How an attempt ended, and what it left."""

    result: Result
    logged: list[dict[str, Any]]
    """metrics.jsonl."""
    whole: list[int]
    """The steps of whole checkpoints."""
    left_running: list[int]
    resumable: dict[str, Any] | None
    finished: bool


@dataclass
class Lives:
    seed: int
    straight: Path
    folder: Path = field(default_factory=Path)
    killed: Interruption | None = None
    stopped: Interruption | None = None
    wiped: Interruption | None = None
    damaged_step: int = 0


def note(result: Result, folder: Path) -> Interruption:
    marker = folder / "resumable.json"
    return Interruption(
        result,
        metrics(folder),
        [checkpoint.step for checkpoint in whole_checkpoints(folder / "checkpoints")],
        alive(worker_ids(folder)),
        json.loads(marker.read_text()) if marker.is_file() else None,
        (folder / "manifest.json").exists() or (folder / "model").exists(),
    )


def live(processes: int, place: Path, straight: Path, seed: int) -> Lives:
    chance = random.Random(seed)
    config = differing(BASE | {"name": f"interrupted-{processes}"}, CASES[processes])
    lives = Lives(seed, straight)

    def kill_a_worker(process: subprocess.Popen[str], folder: Path) -> None:
        os.kill(chance.choice(worker_ids(folder, "1")), signal.SIGKILL)

    def terminate(process: subprocess.Popen[str], folder: Path) -> None:
        process.terminate()

    def kill_above(process: subprocess.Popen[str], folder: Path) -> None:
        """One process: only `scaleup run`; what it started has to notice. Two: everything at once."""
        launchers = children(process.pid)
        workers = worker_ids(folder, "3")
        for pid in [process.pid, *(launchers + workers if processes == 2 else [])]:
            os.kill(pid, signal.SIGKILL)
        wait_until(lambda: not alive(launchers + workers), timeout=40)

    lives.folder = place / "runs" / config["name"]
    result = interrupt(config, cwd=place, when=reached(chance.randint(7, 13)), do=kill_a_worker)
    lives.killed = note(result, lives.folder)
    result = interrupt(config, "--resume", cwd=place, when=reached(chance.randint(20, 27)), do=terminate)
    lives.stopped = note(result, lives.folder)
    result = interrupt(config, "--resume", cwd=place, when=reached(chance.randint(34, 40)), do=kill_above)
    lives.wiped = note(result, lives.folder)
    lives.damaged_step = damage(lives.folder / "checkpoints")
    run(config, "--resume", cwd=place)
    return lives


def damage(checkpoints: Path) -> int:
    """Shorten a file of the newest checkpoint, and leave what a killed writer leaves. The step of the newest."""
    latest = latest_checkpoint(checkpoints)
    assert latest is not None
    leftover = checkpoints / f".step-{latest.step + SAVE_STEPS:08d}.tmp"
    shutil.copytree(latest.path, leftover, dirs_exist_ok=True)
    file = latest.path / "optimizer.bin"
    os.truncate(file, file.stat().st_size // 2)
    return latest.step


@pytest.fixture(scope="module")
def lives(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[int, Future[Lives]]]:
    place = tmp_path_factory.mktemp("resume")
    chance = random.Random(0)
    rows = [
        {"prompt": "".join(chance.choices("abcde", k=chance.randint(1, 40))), "completion": chance.choice("xyz") * 3}
        for _ in range(50)
    ]
    (place / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    dropout = place / "gpt2-with-dropout"
    dropout.mkdir()
    build("tiny-gpt2", dropout)
    config = json.loads((dropout / "config.json").read_text())
    config |= {"resid_pdrop": 0.1, "embd_pdrop": 0.1, "attn_pdrop": 0.1}
    (dropout / "config.json").write_text(json.dumps(config))

    seed = int(os.environ.get("SCALEUP_TEST_SEED", random.SystemRandom().randrange(10**6)))
    print(f"the kills of test_resume are drawn with SCALEUP_TEST_SEED={seed}")
    configs = {name: differing(BASE | {"name": f"straight-{name}"}, changes) for name, changes in CASES.items()}
    straights = train({str(processes): config for processes, config in configs.items()}, place)
    with ThreadPoolExecutor(2) as pool:
        longest_first = sorted(CASES, reverse=True)
        yield {number: pool.submit(live, number, place, straights[str(number)], seed) for number in longest_first}
        pool.shutdown(cancel_futures=True)


@pytest.fixture(params=CASES, ids=["one-process", "two-processes-with-dropout"])
def processes(request: pytest.FixtureRequest) -> int:
    return request.param


@pytest.fixture
def life(lives: dict[int, Future[Lives]], processes: int) -> Lives:
    found = lives[processes].result()
    print(f"SCALEUP_TEST_SEED={found.seed}")
    return found


def first_step_after(before: list[dict[str, Any]], after: list[dict[str, Any]]) -> int:
    """The step with which an attempt went on: lines up to there stay byte by byte, a step done again took its own
    time."""
    same = [line for line, again in zip(before, after, strict=False) if line == again]
    return len(same) + 1


def test_the_end_is_that_of_a_run_nobody_touched(life: Lives) -> None:
    straight = life.straight
    loss = largest_loss_difference(straight, life.folder)
    weight = largest_weight_difference(straight, life.folder)
    print(f"largest difference of a loss {loss:.1e}, of a weight {weight:.1e}")
    assert (loss, weight) == (0, 0)
    for key in ("learning_rate", "grad_norm", "num_tokens"):
        assert [line[key] for line in metrics(life.folder)] == [line[key] for line in metrics(straight)]


def test_there_is_one_line_a_step(life: Lives) -> None:
    assert [line["step"] for line in metrics(life.folder)] == list(range(1, NUM_STEPS + 1))
    assert tensorboard(life.folder, "loss") == pytest.approx(losses(life.folder), rel=1e-6)


def test_a_killed_worker_ends_the_run_by_naming_the_newest_checkpoint(life: Lives) -> None:
    killed = life.killed
    assert killed is not None
    assert killed.result.code == 1, killed.result.stderr
    assert f"the newest checkpoint is step {killed.whole[-1]}; continue with --resume" in killed.result.stderr
    assert f"logs: {life.folder / 'attempts' / '1' / 'logs'}" in killed.result.stderr
    assert killed.left_running == []
    assert killed.resumable is None
    assert not killed.finished


def test_it_goes_on_with_the_step_after_the_newest_checkpoint(life: Lives) -> None:
    killed, stopped = life.killed, life.stopped
    assert killed is not None and stopped is not None
    assert first_step_after(killed.logged, stopped.logged) == killed.whole[-1] + 1


def test_sigterm_saves_at_the_step_it_stops_and_marks_the_run(life: Lives, processes: int) -> None:
    stopped = life.stopped
    assert stopped is not None
    assert stopped.result.code == 75, stopped.result.stderr
    assert "--resume" in stopped.result.stdout
    step = stopped.logged[-1]["step"]
    assert stopped.resumable == {"step": step, "num_steps": NUM_STEPS}
    assert stopped.whole[-1] == step
    assert stopped.left_running == []
    assert not stopped.finished
    assert life.wiped is not None
    assert first_step_after(stopped.logged, life.wiped.logged) == step + 1


def test_nothing_outlives_a_killed_launcher(life: Lives) -> None:
    """The wait in `kill_above` has seen the launcher and the workers end."""
    assert life.wiped is not None
    assert life.wiped.result.code == -signal.SIGKILL
    assert life.wiped.left_running == []
    assert not life.wiped.finished


def test_a_damaged_checkpoint_is_never_resumed_from(life: Lives) -> None:
    wiped = life.wiped
    assert wiped is not None
    before_damaged = wiped.whole[-2]
    assert life.damaged_step == wiped.whole[-1]
    assert first_step_after(wiped.logged, metrics(life.folder)) == before_damaged + 1


def test_the_end_leaves_no_marker_and_no_leftovers(life: Lives) -> None:
    assert (life.folder / "manifest.json").is_file()
    assert not (life.folder / "resumable.json").exists()
    assert not list((life.folder / "checkpoints").glob(".*"))
    steps = [checkpoint.step for checkpoint in whole_checkpoints(life.folder / "checkpoints")]
    assert steps[-2:] == [NUM_STEPS - SAVE_STEPS, NUM_STEPS]


def test_each_rank_has_drawn_its_own_dropout(lives: dict[int, Future[Lives]]) -> None:
    """Otherwise equal trajectories would say nothing about the random state."""
    folder = lives[2].result().folder / "checkpoints"
    states = {
        (checkpoint.step, rank): load_file(checkpoint.path / f"random_state_{rank}.safetensors")["cpu"].tobytes()
        for checkpoint in whole_checkpoints(folder)
        for rank in range(2)
    }
    assert len(states) == len(set(states.values())) == 4
