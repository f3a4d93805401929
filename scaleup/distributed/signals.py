"""A stop asked for by a signal: noted at once, acted on at the next step boundary, where all ranks agree on it."""

from __future__ import annotations

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
