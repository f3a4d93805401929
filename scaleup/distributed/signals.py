"""A stop asked for by a signal: noted at once, acted on at the next step boundary, where all ranks agree on it."""

from __future__ import annotations

import ctypes
import signal
from types import FrameType

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class StopFlag:
    """Set by SIGTERM or SIGUSR1. A second signal changes nothing: schedulers may send several."""

    def __init__(self) -> None:
        self.requested = False

    def install(self) -> StopFlag:
        for number in STOP_SIGNALS:
            signal.signal(number, self._on_signal)
        return self

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.requested = True


def stop_with_parent() -> None:
    """If the launcher is killed outright, the kernel sends us SIGTERM: no worker trains on that nobody watches (Linux:
    prctl PR_SET_PDEATHSIG)."""
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)
