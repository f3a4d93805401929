"""A stop asked for by a signal: noted at once, acted on at the next step boundary, where all ranks agree on it."""

from __future__ import annotations

import ctypes
import signal
from types import FrameType

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class StopFlag:
    """Set by SIGUSR1, which the node's agent sends, or SIGTERM, which others do. A second signal changes nothing:
    schedulers may send several."""

    def __init__(self) -> None:
        self.requested = False

    def install(self) -> StopFlag:
        for number in STOP_SIGNALS:
            signal.signal(number, self._on_signal)
        return self

    def leave_to_the_agent(self) -> None:
        """No longer set by SIGTERM: a scheduler sends it to all processes of a job, and those that save then need the
        ones that serve them."""
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        self.requested = False

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.requested = True


def stop_with_parent() -> None:
    """If the launcher is killed outright, the kernel sends us SIGUSR1: no worker trains on that nobody watches (Linux:
    prctl PR_SET_PDEATHSIG)."""
    ctypes.CDLL(None).prctl(1, signal.SIGUSR1)
