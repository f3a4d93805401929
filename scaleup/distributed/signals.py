"""This module turns signals into stops: a signal sets a flag, and at the next step boundary all ranks agree to stop.
Where there are no steps, or none yet, there is nothing to save: the process ends."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
from types import FrameType

STOP_SIGNALS = (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
STOPPED = 75
"""Is the exit code EX_TEMPFAIL: stopped, and can go on."""
GRACE_SECONDS = 10.0
"""Bounds how long a process goes on after a signal that nobody has taken over: by then every node has been told, so
that none fails because others have ended."""


class StopFlag:
    """Holds a request to stop, set by SIGUSR1, which the node's agent sends, or SIGTERM or SIGHUP, which others send.
    A second signal changes nothing: schedulers may send several."""

    def __init__(self, ends_process: bool = False) -> None:
        """Takes `ends_process`: whether a signal ends this process until somebody calls `take_over`."""
        self.requested = False
        self._ends_process = ends_process

    def install(self) -> StopFlag:
        for number in STOP_SIGNALS:
            signal.signal(number, self._on_signal)
        return self

    def take_over(self) -> None:
        """Leaves the reaction to the caller, who from now on looks at `requested` and saves before the process ends."""
        self._ends_process = False

    @property
    def is_ending(self) -> bool:
        """Returns whether a signal is about to end this process; failures of the processes that end with it are no
        errors."""
        return self.requested and self._ends_process

    def leave_to_the_agent(self) -> None:
        """Takes over, and ignores SIGTERM and SIGHUP: a scheduler sends them to all processes of a job, and those
        that save still need those that serve them."""
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        self.take_over()
        self.requested = False

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self._ends_process and not self.requested:
            timer = threading.Timer(GRACE_SECONDS, self._end)
            timer.daemon = True
            timer.start()
        self.requested = True

    def _end(self) -> None:
        if self._ends_process:
            sys.stdout.flush()
            os._exit(STOPPED)


def stop_with_parent() -> None:
    """Lets the kernel send us SIGUSR1 if the launcher is killed, so that no worker trains on unwatched (Linux: prctl
    PR_SET_PDEATHSIG)."""
    ctypes.CDLL(None).prctl(1, signal.SIGUSR1)
