"""This module tells on stderr where a check is that takes longer than one waits for without a word."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Event, Thread

from scaleup.children import PROGRESS

FIRST_SECONDS = 3.0
NEXT_SECONDS = 10.0


class Progress:
    """Holds the place that is looked at, and how many were before."""

    def __init__(self) -> None:
        self._place, self._number = "", 0

    def at(self, place: str) -> None:
        """Goes on to another place, or to the same one once more."""
        self._number += place != self._place
        self._place = place

    def line(self) -> str:
        """Returns what is done at this moment; nothing before anything is."""
        return f"{PROGRESS}{self._place} ({self._number:,} so far)" if self._place else ""


@contextmanager
def shown_progress() -> Iterator[Progress]:
    """Tells after some seconds, and then now and then, where the block is. Rows may be so long that one takes minutes,
    so that it is a thread which tells it."""
    progress, is_over = Progress(), Event()

    def tell() -> None:
        seconds = FIRST_SECONDS
        while not is_over.wait(seconds):
            if line := progress.line():
                print(line, file=sys.stderr, flush=True)
            seconds = NEXT_SECONDS

    teller = Thread(target=tell, daemon=True)
    teller.start()
    try:
        yield progress
    finally:
        is_over.set()
        teller.join()
