"""A folder that a rank has written goes in; its files, as part of the checkpoint of all ranks, come out: at once, or in
the background while the training goes on.

Each rank writes into a folder of its own, so each knows which files are its own: it moves or copies them where they
belong, computes their checksums, and writes these into a file there. Rank 0 waits for these files, lists what they name
and gives the checkpoint its name. Threads talk through files alone: collectives belong to the training.

What goes on while a checkpoint is written needs a copy of it: it is written into main memory first (/dev/shm), in the
very files that the strategy's library writes."""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import psutil

from scaleup.artifacts.checkpoints import CheckpointFolder, checksum_of, write_listing
from scaleup.artifacts.files import aside_of, commit_folder, read_json, write_json
from scaleup.plan.memory import COPY_SHARE

POLL_SECONDS = 0.05
LAST_WAIT_SECONDS = 60.0
"""Bounds how long rank 0 waits for the files of others once its training has ended: they may be gone."""
THREAD = "checkpoint"
"""Names the threads, for who ends the process."""


def begin_in_memory(folder: Path, size: int) -> bool:
    """Makes a folder in main memory anew, for this user alone. Returns whether every rank of this node may put `size`
    bytes into its own."""
    shutil.rmtree(folder, ignore_errors=True)
    try:
        folder.mkdir(mode=0o700)  # fails where somebody else has one of that name
        room = os.statvfs(folder)
    except OSError:
        return False
    free = min(room.f_bavail * room.f_frsize, int(COPY_SHARE * psutil.virtual_memory().available))
    return size * int(os.environ.get("LOCAL_WORLD_SIZE", "1")) <= free


def publish(own: Path, checkpoint: CheckpointFolder, rank: int) -> None:
    """Moves a rank's files into the folder aside that all ranks share, and says there which they are. Raises
    OSError."""
    aside, sums = aside_of(checkpoint.path), {}
    for file in sorted(file for file in own.rglob("*") if file.is_file()):
        name = str(file.relative_to(own))
        (aside / name).parent.mkdir(parents=True, exist_ok=True)
        sums[name] = _moved(file, aside / name)
    shutil.rmtree(own)
    write_json(_share(aside, rank), sums)  # last: rank 0 may rename the folder now


def complete(checkpoint: CheckpointFolder, ranks: Iterable[int], is_given_up: Callable[[], bool]) -> None:
    """Waits until all ranks have published their files, lists them, and gives the checkpoint its name. Leaves it where
    it is once `is_given_up`. Raises OSError."""
    aside = aside_of(checkpoint.path)
    shares = [_share(aside, rank) for rank in ranks]
    while not all(share.is_file() for share in shares):
        if is_given_up():
            return
        time.sleep(POLL_SECONDS)
    sums = {name: value for share in shares for name, value in read_json(share).items()}
    for share in shares:
        share.unlink()
    write_listing(aside, checkpoint.step, sums)
    commit_folder(checkpoint.path)


def _share(aside: Path, rank: int) -> Path:
    return aside / f".written-{rank}.json"


def _moved(file: Path, place: Path) -> int:
    """Returns the CRC-32 of a file, which it renames, or copies from another file system."""
    if file.stat().st_dev == place.parent.stat().st_dev:
        checksum = checksum_of(file)
        file.rename(place)
        return checksum
    with place.open("wb", buffering=0) as target:
        checksum = checksum_of(file, target.write)
        os.fsync(target.fileno())
    return checksum


class Work:
    """Does something in a thread of its own, which the process waits for before it ends."""

    def __init__(self, action: Callable[[Callable[[], bool]], None]) -> None:
        """`action` is called with a function that tells whether it is given up: by its owner, or since the training
        has ended a while ago."""
        self._error: BaseException | None = None
        self._is_given_up = threading.Event()
        self._ended_at: float | None = None
        self._thread = threading.Thread(target=self._run, args=(action,), name=THREAD, daemon=False)
        self._thread.start()

    def give_up(self) -> None:
        self._is_given_up.set()
        self._thread.join()

    def result(self) -> None:
        """Waits for the end. Raises what the action raised."""
        self._thread.join()
        if self._error is not None:
            raise self._error

    def _run(self, action: Callable[[Callable[[], bool]], None]) -> None:
        try:
            action(self._must_end)
        except BaseException as error:
            self._error = error

    def _must_end(self) -> bool:
        if not threading.main_thread().is_alive():
            self._ended_at = self._ended_at or time.monotonic()
        is_late = self._ended_at is not None and time.monotonic() - self._ended_at > LAST_WAIT_SECONDS
        return self._is_given_up.is_set() or is_late


def let_saves_end(seconds: float) -> None:
    """Waits, at most so long, for the threads that write a checkpoint: for a process that ends without its
    interpreter."""
    deadline = time.monotonic() + seconds
    for thread in threading.enumerate():
        if thread.name == THREAD:
            thread.join(max(0.0, deadline - time.monotonic()))
