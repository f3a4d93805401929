"""A worker's sign of life: a file that says that its process runs, and how far its main thread is.

The main thread only sets attributes; a thread of its own writes them, for the node's agent (launcher/hung.py)."""

from __future__ import annotations

import faulthandler
import json
import os
import signal
import socket
import sys
import time
from contextlib import suppress
from pathlib import Path
from threading import Thread

BEAT_SECONDS = 3.0


class SignOfLife:
    """`meetings` orders the ranks of a group: all enter the same collectives in the same order, so of a group that
    stands still, those that have entered fewest are behind, and the others wait for them. `marks`, what a rank began
    since, orders those that meet within a model's forward pass, where nobody counts."""

    def __init__(self, file: Path | None = None, node_rank: int = 0) -> None:
        self._file = file
        self._node = node_rank
        self._beat = 0
        self.phase = "starting"
        self.step: int | None = None
        """The step it is in, from 1; None outside of the steps."""
        self.steps = 0
        """Those that this process has begun."""
        self.meetings = 0
        self.marks = 0

    def start(self) -> SignOfLife:
        """Write from now on, until the process ends; SIGUSR2 prints the stacks of all threads."""
        faulthandler.register(signal.SIGUSR2, file=sys.stderr, all_threads=True)
        Thread(target=self._beat_on, name="sign-of-life", daemon=True).start()
        return self

    def at(self, phase: str) -> None:
        """The main thread begins with this, or goes on with it."""
        self.phase = phase
        self.marks += 1

    def meet(self) -> None:
        """The main thread enters a collective."""
        self.meetings += 1
        self.marks = 0

    def begin_step(self, step: int) -> None:
        self.step = step
        self.steps += 1

    def end_steps(self) -> None:
        """What follows the last step takes as long as it takes: it is not watched for progress."""
        self.step = None

    def _beat_on(self) -> None:
        while True:
            self._beat += 1
            with suppress(OSError):  # a full disk is no reason to end a run
                self._write()
            time.sleep(BEAT_SECONDS)

    def _write(self) -> None:
        assert self._file is not None
        said = {
            "beat": self._beat,
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "node": self._node,
            "phase": self.phase,
            "step": self.step,
            "steps": self.steps,
            "position": [self.meetings, self.marks],
        }
        aside = self._file.with_name(f".{self._file.name}.tmp")
        aside.write_text(json.dumps(said), encoding="utf-8")
        aside.replace(self._file)
