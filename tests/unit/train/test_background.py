"""Checkpoints that are written while the training goes on: whole or absent, of the step at which they were asked for,
with checksums by whoever wrote the files; and what cannot be written costs nothing that is there."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from scaleup.artifacts.checkpoints import (
    IN_MEMORY,
    CheckpointFolder,
    checkpoint_folder,
    damage_of,
    latest_checkpoint,
    memory_folder,
    whole_checkpoints,
)
from scaleup.artifacts.files import aside_of
from scaleup.artifacts.run_folder import RunFolder
from scaleup.errors import ScaleupError
from scaleup.train import background, checkpoint
from scaleup.train.background import Work, begin_in_memory, complete, publish
from tests.cli import wait_until
from tests.forked import start_child
from tests.unit.train.test_checkpoint import STEPS, Training

NUM_KILLS = 20


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """What is written in the background waits until it is opened."""
    opened = threading.Event()

    def waiting(*arguments: Any) -> None:
        assert opened.wait(60)
        publish(*arguments)

    monkeypatch.setattr(checkpoint, "publish", waiting)
    yield opened
    opened.set()


def same(one: Training, other: Training) -> bool:
    weights = one.model.state_dict()
    return all(torch.equal(weight, weights[key]) for key, weight in other.model.state_dict().items())


def test_the_training_goes_on_and_the_checkpoint_is_of_its_step(run: RunFolder, gate: threading.Event) -> None:
    straight = Training(run)
    straight.go(2)
    straight.checkpointer.save(straight.state)
    expected = straight.go(STEPS)
    assert latest_checkpoint(run.checkpoints) is None and straight.checkpointer.last_step is None
    gate.set()
    straight.checkpointer.wait()
    assert straight.checkpointer.last_step == 2
    resumed = Training(run)
    resumed.state = resumed.checkpointer.restore()
    assert resumed.state.step == 2 and resumed.go(STEPS) == expected and same(straight, resumed)
    assert not memory_folder(run.path, 0).exists()


def test_a_second_one_waits_for_the_first(run: RunFolder, gate: threading.Event) -> None:
    training = Training(run)
    training.go(1)
    training.checkpointer.save(training.state)
    training.go(2)
    threading.Timer(0.2, gate.set).start()
    training.checkpointer.save(training.state)
    assert [found.step for found in whole_checkpoints(run.checkpoints)][:1] == [1]
    training.checkpointer.wait()
    assert [found.step for found in whole_checkpoints(run.checkpoints)] == [1, 2]


def test_one_that_fails_is_told_by_the_next(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    training = Training(run)
    training.go(1)
    training.save()
    training.go(2)

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "publish", full)
        training.checkpointer.save(training.state)
        training.go(3)
        with pytest.raises(ScaleupError, match=r"No space left on device.*the last good checkpoint is step 1"):
            training.checkpointer.save(training.state)
    assert [folder.name for folder in run.checkpoints.iterdir()] == ["step-00000001"]
    assert not memory_folder(run.path, 0).exists()
    training.save()
    assert [found.step for found in whole_checkpoints(run.checkpoints)] == [1, 3]


@pytest.mark.parametrize("why", ["no room", "somebody else's folder", "full after all"])
def test_without_room_in_memory_the_training_waits(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], why: str
) -> None:
    training, memory = Training(run), memory_folder(run.path, 0)
    training.go(1)
    if why == "no room":
        monkeypatch.setattr(background, "COPY_SHARE", 0.0)
    elif why == "somebody else's folder":
        memory.write_text("not ours")
    else:
        write = checkpoint.Checkpointer._write

        def full(self: Any, own: Path, state: Any) -> None:
            write(self, own, state)
            if own == memory:
                raise OSError(28, "No space left on device")

        monkeypatch.setattr(checkpoint.Checkpointer, "_write", full)
    for step in (1, 2):
        training.go(step)
        training.checkpointer.save(training.state)
        assert training.checkpointer.last_step == step, "it is whole at once"
    said = capsys.readouterr().out
    assert said.count("checkpoints are written while the training waits: a copy of ") == (why != "full after all")
    newest = latest_checkpoint(run.checkpoints)
    assert newest is not None and damage_of(newest) == ""
    memory.unlink(missing_ok=True)


@pytest.mark.parametrize("is_near", [True, False])
def test_each_rank_says_what_it_wrote(tmp_path: Path, is_near: bool) -> None:
    """Moved within a file system, copied from another; empty folders are nobody's."""
    found = CheckpointFolder(checkpoint_folder(tmp_path, 7), 7)
    aside = aside_of(found.path)
    aside.mkdir(parents=True)
    owns = [
        aside / f".rank-{rank}" if is_near else IN_MEMORY / f"{tmp_path.name}-{os.getpid()}-{rank}" for rank in (0, 1)
    ]
    completion = Work(lambda is_given_up: complete(found, range(2), is_given_up))
    for rank, own in enumerate(owns):
        assert not found.path.exists(), "a rank is missing"
        (own / "deep/empty").mkdir(parents=True)
        (own / f"deep/part-{rank}.bin").write_bytes(os.urandom(3 << 20))
        publish(own, found, rank)
        assert not own.exists()
    completion.result()
    assert [file.name for file in sorted((found.path / "deep").iterdir())] == ["part-0.bin", "part-1.bin"]
    assert {file.name for file in found.path.iterdir()} == {"deep", "checkpoint.json"}
    assert whole_checkpoints(tmp_path) == [found] and damage_of(found) == ""
    (found.path / "deep/part-1.bin").write_bytes(bytes(3 << 20))
    assert damage_of(found) == "deep/part-1.bin does not match its checksum"


def test_what_is_given_up_is_absent(tmp_path: Path) -> None:
    found = CheckpointFolder(checkpoint_folder(tmp_path, 7), 7)
    aside_of(found.path).mkdir(parents=True)
    completion = Work(lambda is_given_up: complete(found, range(2), is_given_up))
    completion.give_up()
    completion.result()
    assert not found.path.exists()


def test_a_folder_in_memory_is_for_this_user_alone(run: RunFolder) -> None:
    folder = memory_folder(run.path, 0)
    assert begin_in_memory(folder, 1) and folder.stat().st_mode & 0o777 == 0o700
    (folder / "left").touch()
    assert begin_in_memory(folder, 1) and list(folder.iterdir()) == [], "of a worker that was killed"
    assert not begin_in_memory(folder, 1 << 60)
    folder.rmdir()


@pytest.mark.slow
def test_a_kill_at_any_moment_costs_no_bit(run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Twenty times, while something is being written, at a moment drawn by chance."""
    torch.manual_seed(3)
    straight = Training(RunFolder(tmp_path / "straight"), dropout=0.5)
    straight.go(STEPS)
    chance, moved = random.Random(0), background._moved

    def slowly(*arguments: Any) -> int:
        time.sleep(chance.random() / 50)
        return moved(*arguments)

    monkeypatch.setattr(background, "_moved", slowly)
    interrupted = 0
    for number in range(NUM_KILLS):
        folder = RunFolder(tmp_path / f"killed-{number}")
        folder.checkpoints.mkdir(parents=True)

        def trains(folder: RunFolder = folder) -> None:
            torch.manual_seed(3)
            training = Training(folder, dropout=0.5)
            for step in range(1, STEPS + 1):
                training.go(step)
                training.checkpointer.save(training.state)

        child = start_child(trains, tmp_path / "log")
        wait_until(lambda folder=folder: any(folder.checkpoints.iterdir()), every=0.001)  # type: ignore[misc]
        time.sleep(chance.random() * 0.6)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        interrupted += any(folder.checkpoints.glob(".step-*"))
        torch.manual_seed(3)
        resumed = Training(folder, dropout=0.5)
        resumed.state = resumed.checkpointer.restore()
        resumed.go(STEPS)
        assert same(straight, resumed), f"killed at {[each.name for each in folder.checkpoints.iterdir()]}"
        assert not memory_folder(folder.path, 0).exists()
    assert interrupted > NUM_KILLS / 4, "too few were hit while they were writing"
