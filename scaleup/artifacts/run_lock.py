"""This module tells which process of this host runs what, by the kernel's own list of locks.

Nothing is locked to find that out, not even for a moment: a run that starts meanwhile would be refused because of it.
A process id that comes from here belongs to whoever has the lock now, and cannot be one that was used again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from glob import escape
from pathlib import Path

from scaleup.artifacts.run_folder import RunFolder

LOCKS = Path("/proc/locks")
Holders = Mapping[tuple[int, int], int]
"""Maps the device and the inode of a locked file -> the process that has the lock."""


@dataclass(frozen=True)
class Holder:
    """Stands for the process that runs a node's part of a run."""

    pid: int
    node_rank: int


def lock_holders() -> Holders:
    """Return who on this host has which file locked, of the processes that this user may look into."""
    holders: dict[tuple[int, int], int] = {}
    for pid in _locking_processes():
        with suppress(OSError):  # it has just ended, or is another user's
            for descriptor in Path(f"/proc/{pid}/fd").iterdir():
                with suppress(OSError):
                    if _is_locked(pid, descriptor.name):
                        status = descriptor.stat()
                        holders[(status.st_dev, status.st_ino)] = pid
    return holders


def _locking_processes() -> set[int]:
    """Returns the processes that have any file locked alone. Files are told apart by their descriptors: the devices
    that the kernel lists are not those of `stat` on every file system."""
    with suppress(OSError):
        fields = [line.split() for line in LOCKS.read_text(encoding="ascii").splitlines()]
        return {int(each[4]) for each in fields if each[1:4:2] == ["FLOCK", "WRITE"]}
    return set()


def _is_locked(pid: int, descriptor: str) -> bool:
    lines = Path(f"/proc/{pid}/fdinfo/{descriptor}").read_text(encoding="ascii").splitlines()
    return any(line.startswith("lock:") and "FLOCK" in line and "WRITE" in line for line in lines)


def holder_of(run: RunFolder, holders: Holders | None = None) -> Holder | None:
    """Return which process of this host runs a run, or a node's part of it, the first node's before others; None if
    none does. `holders`: what `lock_holders` has returned, for many runs."""
    holders = lock_holders() if holders is None else holders
    return next((holder for holder in _holders_of(run, holders)), None)


def _holders_of(run: RunFolder, holders: Holders) -> Iterator[Holder]:
    name = f".{run.path.name}.node"
    locks = run.path.parent.glob(f"{escape(name)}*.lock")
    others = [file.name.removeprefix(name).removesuffix(".lock") for file in locks]
    for node_rank in [0, *sorted(int(other) for other in others if other.isdecimal())]:
        with suppress(OSError):
            status = run.lock_file(node_rank).stat()
            if (pid := holders.get((status.st_dev, status.st_ino))) is not None:
                yield Holder(pid, node_rank)
