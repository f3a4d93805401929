"""This module passes SIGTERM, SIGHUP and Ctrl-C on to a node agent, from its first attempt to the end of its last
wait."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class StopSignals:
    """Counts stop signals, and passes each to whoever can act on it now. Those around it count them too, so that what
    follows a run does not begin."""

    def __init__(self) -> None:
        self.count = 0
        self.at_once = False
        """Tells that a second Ctrl-C came here: nobody waits for anything any more."""
        self._interrupts = 0
        self._act: Callable[[], None] = lambda: None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        ignored = {signal.SIGHUP} if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else set()  # by nohup
        taken = [number for number in STOP_SIGNALS if number not in ignored]
        self._before = {number: signal.signal(number, self._on_signal) for number in taken}
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def request(self) -> None:
        """Count one as if it had come here: another node was told to stop."""
        self._note(at_once=False)

    @contextmanager
    def passed_to(self, act: Callable[[], None]) -> Iterator[None]:
        """Call `act` on each signal within the block."""
        self._act = act
        try:
            yield
        finally:
            self._act = lambda: None

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._interrupts += number == signal.SIGINT
        around = getattr(self._before.get(number), "__self__", None)
        if isinstance(around, StopSignals):
            around.count += 1
        self._note(at_once=self._interrupts > 1)

    def _note(self, at_once: bool) -> None:
        self.count += 1
        self.at_once = self.at_once or at_once
        self._act()
