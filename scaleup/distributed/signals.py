"""A stop asked for by a signal: noted at once, acted on at the next step boundary, where all ranks agree on it. Where
there are no steps, or none yet, there is nothing to save: the process ends."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
from types import FrameType

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
STOPPED = 75
"""EX_TEMPFAIL: stopped, and can go on."""
UNHEEDED_SECONDS = 5.0
"""How long a process goes on that nothing saves for: by then every node has been told, and none dies of the others."""


class StopFlag:
    """Set by SIGUSR1, which the node's agent sends, or SIGTERM, which others do. A second signal changes nothing:
    schedulers may send several."""

    def __init__(self, ends_process: bool = False) -> None:
        """`ends_process`: whether a signal ends this process as long as nobody heeds the flag."""
        self.requested = False
        self._ends_process = ends_process

    def install(self) -> StopFlag:
        for number in STOP_SIGNALS:
            signal.signal(number, self._on_signal)
        return self

    def heed(self) -> None:
        """From now on the caller looks at `requested`, and saves before it ends."""
        self._ends_process = False

    @property
    def is_unheeded(self) -> bool:
        """Whether this process is about to end because of a signal; what it feels of others that do is no error."""
        return self.requested and self._ends_process

    def leave_to_the_agent(self) -> None:
        """Heeded, and no longer set by SIGTERM: a scheduler sends it to all processes of a job, and those that save
        then need who serves them."""
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        self.heed()
        self.requested = False

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self._ends_process and not self.requested:
            timer = threading.Timer(UNHEEDED_SECONDS, self._end_unheeded)
            timer.daemon = True
            timer.start()
        self.requested = True

    def _end_unheeded(self) -> None:
        if self._ends_process:
            sys.stdout.flush()
            os._exit(STOPPED)


def stop_with_parent() -> None:
    """If the launcher is killed outright, the kernel sends us SIGUSR1: no worker trains on that nobody watches (Linux:
    prctl PR_SET_PDEATHSIG)."""
    ctypes.CDLL(None).prctl(1, signal.SIGUSR1)
