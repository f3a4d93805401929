"""A running run goes in; it is asked to save and to stop, and the one who asked waits until it has."""

from __future__ import annotations

import os
import select
import signal
from pathlib import Path

from rich.console import Console

from scaleup.artifacts.run_folder import RunFolder
from scaleup.artifacts.run_lock import holder_of
from scaleup.errors import ScaleupError
from scaleup.runs.logs import INTERRUPTED
from scaleup.runs.show import command_of, last_error, shown_path
from scaleup.runs.state import place_of, read_state, run_at

POLL_SECONDS = 0.3
REQUEST = signal.SIGTERM
"""Is what schedulers send, and does what a first Ctrl-C does; a second one of it does not end a run that saves."""


def stop_run(path: Path, console: Console) -> int:
    """Ask a run to save and to stop, on all its nodes, and wait until it has ended here. Return the exit code: 1 if it
    failed, else 0.

    Raises ScaleupError for a run that does not go on, that goes on on another host, or that is another user's."""
    run = run_at(path)
    place, before = place_of(run), read_state(path)
    if place is None:
        raise ScaleupError.of(str(path), "does not run now", f"it is {before.state}: `scaleup status` says more")
    if place.pid is None:
        remedy = f"type there: scaleup stop {shown_path(run.path)}"
        raise ScaleupError.of(str(path), f"runs on host {place.host}, which only a command there can stop", remedy)
    try:
        _stop(run, place.pid, console)
    except KeyboardInterrupt:
        console.print(f"{path} stops once it has saved", soft_wrap=True)
        return INTERRUPTED
    return _report(path, console)


def _stop(run: RunFolder, pid: int, console: Console) -> None:
    """Sends the signal, and waits until the process has ended, or has the run's lock no longer. A descriptor stands for
    it before we look again whether it has that lock: an id that has been used again is never signalled."""
    try:
        process = os.pidfd_open(pid)
    except ProcessLookupError:  # it has ended meanwhile
        return
    try:
        holder = holder_of(run)
        if holder is None or holder.pid != pid:
            return
        signal.pidfd_send_signal(process, REQUEST)
        console.print(f"{shown_path(run.path)} saves and stops: waiting for process {pid}", soft_wrap=True)
        while not select.select([process], [], [], POLL_SECONDS)[0]:
            if (holder := holder_of(run)) is None or holder.pid != pid:  # it goes on with something else
                return
    except ProcessLookupError:
        return
    finally:
        os.close(process)


def _report(path: Path, console: Console) -> int:
    """Prints how the run has ended. Returns the exit code."""
    state = read_state(path)
    if state.state == "finished":
        console.print(f"{path} has finished", soft_wrap=True)
        return 0
    if state.state == "failed":
        console.print(f"{path} has failed: {last_error(state)}", soft_wrap=True)
    else:
        step = "" if state.step is None else f" after step {state.step}"
        console.print(f"{path} was stopped{step} and can go on: {command_of(state)}", soft_wrap=True)
    return int(state.state == "failed")
