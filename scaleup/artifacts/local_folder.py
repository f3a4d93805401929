"""This module keeps the folder in which a node's workers tell its agent how far they are.

It lies on the node's own disk: a thousand ranks that beat on a shared file system would be its load."""

from __future__ import annotations

import fcntl
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from scaleup.artifacts.files import write_problem
from scaleup.artifacts.noticeboard import NoticeBoard

PREFIX = "scaleup-node-"
LOCK = ".lock"


@dataclass(frozen=True)
class LocalFolder:
    """Stands for what a node's workers and its agent tell each other in one attempt."""

    path: Path
    why: str = ""
    """Says why it lies in the run folder, where it does."""

    @property
    def heartbeats(self) -> Path:
        """Return the notice board of the workers, which their agent reads. Who posts there takes signals."""
        return self.path / "heartbeats"

    def progress_file(self, group: str) -> Path:
        return self.path / f"progress-{group}.json"

    def notes_file(self, group: str) -> Path:
        """Return the file of lines that a group's rank 0 has for the user."""
        return self.progress_file(group).with_suffix(".txt")

    def ranks(self, group: str) -> list[str]:
        """Return the names of this node's workers of a group that have posted a heartbeat."""
        return sorted(file.stem for file in self.heartbeats.glob(f"{group}-rank*.json"))

    def pids(self) -> dict[str, int]:
        """Return the process id of each worker that has posted a heartbeat, by its name."""
        board = NoticeBoard(self.heartbeats)
        found = {name: board.read(name, lambda state: int(state["pid"])) for name in self.ranks("*")}
        return {name: pid for name, pid in found.items() if pid is not None}

    def forget(self, group: str) -> None:
        """Remove the heartbeats of a group, which is started again within the attempt."""
        for rank in self.ranks(group):
            (self.heartbeats / f"{rank}.json").unlink(missing_ok=True)


@contextmanager
def local_folder(instead: Path) -> Iterator[LocalFolder]:
    """Make a folder for this user alone, and remove it at the end: in `$TMPDIR` or what stands for it, else `instead`.

    Not in `$XDG_RUNTIME_DIR` or `/dev/shm`: a host may empty both when its user logs out, while the run goes on.
    Raises OSError where neither can be written."""
    try:
        path, lock = _claimed()
        why = ""
    except OSError as error:
        why, path, lock = error.strerror or str(error), instead, None
        path.mkdir(parents=True, exist_ok=True)
    try:
        folder = LocalFolder(path, why)
        folder.heartbeats.mkdir(exist_ok=True)
        yield folder
    finally:
        shutil.rmtree(path, ignore_errors=True)
        if lock is not None:
            os.close(lock)


def _claimed() -> tuple[Path, int]:
    """Makes a folder, after removing those of agents that were killed. Returns it with the descriptor of the lock that
    tells others that its agent lives. Raises OSError."""
    parent = Path(tempfile.gettempdir())
    asked = {os.environ.get(name) for name in ("TMPDIR", "TEMP", "TMP")} | {"/tmp", "/var/tmp", "/usr/tmp"}
    if parent == Path.cwd() and str(parent) not in asked:  # the last resort, perhaps where nodes share it
        raise FileNotFoundError(2, "no folder for temporary files can be written; set TMPDIR")
    for left in parent.glob(f"{PREFIX}*"):
        with suppress(OSError):
            _remove_if_left(left)
    path = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent))
    try:
        lock = os.open(path / ".aside", os.O_WRONLY | os.O_CREAT, 0o600)
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        (path / ".aside").rename(path / LOCK)  # nobody sees it unlocked
        if why := write_problem(path):
            raise OSError(0, f"{path.parent}: {why}")
    except OSError:
        shutil.rmtree(path, ignore_errors=True)
        raise
    return path, lock


def _remove_if_left(path: Path) -> None:
    """Removes a folder of this user's whose agent is gone: the kernel has let go of its lock."""
    known = path.lstat()
    if not stat.S_ISDIR(known.st_mode) or known.st_uid != os.getuid():
        return
    lock = os.open(path / LOCK, os.O_WRONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(path, ignore_errors=True)
    finally:
        os.close(lock)
