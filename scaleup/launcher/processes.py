"""This module finds and ends a run's processes on this host, which it knows by their command lines. Ids are used again,
command lines are not."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil
from rich.console import Console

from scaleup.errors import ScaleupError

LEFTOVER_SECONDS = 30.0
"""Counts the seconds that workers that an earlier start left behind may go on: they were told to stop, and may be
saving."""
STOP = signal.SIGUSR1
"""Tells a worker to save and end. It is not SIGTERM, which schedulers send to all processes of a job: those that serve
do not take it, because the ones that save need them until they have."""
MODULES = ("scaleup.worker", "scaleup.generator.engine")
"""Names what workers run."""
KILL_SECONDS = 10.0
POLL_SECONDS = 0.1


@dataclass(frozen=True)
class RunProcess:
    """Stands for a launcher or a worker of one attempt."""

    pid: int
    group: str
    attempt: int
    node: int
    is_launcher: bool
    local: Path | None = field(default=None, compare=False)
    """Is the node's own folder, in which it shows how far it is."""


def processes_of(run: Path) -> list[RunProcess]:
    """Return those that an agent started for this run; a worker started by hand belongs to no attempt."""
    everybody = psutil.process_iter(["cmdline"])  # None for a zombie, and for one that is not ours to see
    ours = [_process(process.pid, process.info["cmdline"] or [], run) for process in everybody]
    return [process for process in ours if process is not None]


def _process(pid: int, arguments: list[str], run: Path) -> RunProcess | None:
    with suppress(ValueError, IndexError, StopIteration):
        place = next(arguments.index(module) for module in MODULES if module in arguments)
        if os.path.realpath(arguments[place + 1]) == os.path.realpath(run):
            attempt, node = (int(arguments[arguments.index(name, place) + 1]) for name in ("--attempt", "--node"))
            is_launcher = "accelerate.commands.launch" in arguments[:place]
            local = Path(arguments[arguments.index("--local", place) + 1]) if "--local" in arguments[place:] else None
            return RunProcess(pid, arguments[place + 2], attempt, node, is_launcher, local)
    return None


def kill(find: Callable[[], list[RunProcess]]) -> bool:
    """Kill what `find` returns until it returns nothing; launchers first, which would start or report something.

    Returns False if the kernel does not let go of one in time; even that one runs no further instruction of its own."""
    deadline = time.monotonic() + KILL_SECONDS
    while processes := find():
        if time.monotonic() > deadline:
            return False
        signal_all(sorted(processes, key=lambda process: not process.is_launcher), signal.SIGKILL)
        time.sleep(0.02)
    return True


def signal_all(processes: Iterable[RunProcess], number: signal.Signals) -> None:
    for process in processes:
        with suppress(ProcessLookupError, PermissionError):
            os.kill(process.pid, number)


def end_leftovers(run: Path, before: int | None, console: Console, node: int | None = None) -> None:
    """Wait for the workers of attempts before this one (None: of any), and for those of a node in this very one, then
    kill them. When an agent is killed outright, its workers outlive it for a while and may still save.

    Raises ScaleupError when one does not end."""

    def leftovers() -> list[RunProcess]:
        return [process for process in processes_of(run) if before is None or is_left(process, before)]

    def is_left(process: RunProcess, before: int) -> bool:
        return process.attempt < before or (process.attempt == before and process.node == node)

    if not (left := leftovers()):
        return
    shown = ", ".join(str(process.pid) for process in left)
    console.print(f"waiting for processes that an earlier start of this run left behind: {shown}", highlight=False)
    signal_all([process for process in left if not process.is_launcher], STOP)
    deadline = time.monotonic() + LEFTOVER_SECONDS
    while leftovers() and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)
    if not kill(leftovers):
        stuck = ", ".join(str(process.pid) for process in leftovers())
        what = f"process {stuck} of an earlier start does not end"
        raise ScaleupError.of(f"runs_dir/name ({run})", what, "end it, or choose another name")
