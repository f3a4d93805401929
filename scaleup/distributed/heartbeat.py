"""This module writes a worker's heartbeat: a notice that shows that its process runs, and how far its main thread is.

The main thread only sets attributes; a thread of its own writes them for the node's agent (launcher/hung.py), which
tells the other nodes."""

from __future__ import annotations

import faulthandler
import os
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path
from threading import Thread

from scaleup.artifacts.noticeboard import NoticeBoard

BEAT_SECONDS = 3.0


class Heartbeat:
    """Counts what the main thread enters, and writes it every `BEAT_SECONDS`.

    `collectives` orders the ranks of a group: all enter the same ones in the same order, so if a group stands still,
    those that have entered fewest are behind, and the others wait for them. `phases`, entered since the last one,
    orders ranks that wait for each other within a model's forward pass, where nobody counts."""

    def __init__(self, file: Path | None = None) -> None:
        self._file = file
        self._beat = 0
        self.phase = "starting"
        self.step: int | None = None
        """Is the current step, from 1; None outside of the training loop."""
        self.steps = 0
        """Counts the steps that this process has begun."""
        self.num_steps: int | None = None
        """Is the number of the run's last step; None where nobody has said it."""
        self.step_seconds = 0.0
        """Is how long all steps took that this process has ended, with what came between them."""
        self._first_step_at = 0.0
        self.collectives = 0
        self.phases = 0

    def start(self) -> Heartbeat:
        """Writes from now on, until the process ends; makes SIGUSR2 print the stacks of all threads.

        Raises OSError where the first notice cannot be written: the agent would not know whom to tell to save."""
        faulthandler.register(signal.SIGUSR2, file=sys.stderr, all_threads=True)
        if self._file is not None:
            self._write(self._file)
            Thread(target=self._beat_on, args=[self._file], name="heartbeat", daemon=True).start()
        return self

    def enter_phase(self, phase: str) -> None:
        """Notes that the main thread begins a phase, or the next piece of the same one."""
        self.phase = phase
        self.phases += 1

    def enter_collective(self) -> None:
        """Notes that the main thread enters a collective."""
        self.collectives += 1
        self.phases = 0

    def begin_step(self, step: int, num_steps: int | None = None) -> None:
        """Notes that the main thread begins a step, counted from 1, of so many."""
        now = time.monotonic()
        if not self.steps:
            self._first_step_at = now
        self.step_seconds = now - self._first_step_at
        self.step, self.num_steps = step, num_steps
        self.steps += 1

    def end_steps(self) -> None:
        """Notes that the last step is done: what follows is not watched for progress."""
        self.step = None

    def _beat_on(self, file: Path) -> None:
        while True:
            time.sleep(BEAT_SECONDS)
            with suppress(OSError):  # a full disk is no reason to end a run
                self._write(file)

    def _write(self, file: Path) -> None:
        self._beat += 1
        state = {
            "beat": self._beat,
            "pid": os.getpid(),
            "phase": self.phase,
            "step": self.step,
            "steps": self.steps,
            "num_steps": self.num_steps,
            "step_seconds": self.step_seconds,
            "position": [self.collectives, self.phases],
        }
        NoticeBoard(file.parent, is_durable=False).post(file.stem, state)
