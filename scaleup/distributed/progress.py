"""This module reports the progress of this group: the launcher reads it from a file; a process that was started by hand
prints lines."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from scaleup.artifacts.files import write_text
from scaleup.distributed.heartbeat import Heartbeat


class Progress:
    """Reports rank 0's position, at most five times a second, and always the last one of a phase. Every rank notes its
    phase in `heartbeat`."""

    def __init__(self, file: Path | None, enabled: bool, heartbeat: Heartbeat | None = None) -> None:
        self.heartbeat = heartbeat or Heartbeat()
        self._file = file
        self._enabled = enabled
        self._next = 0.0
        self._phase = ""

    def report(self, phase: str, done: int = 0, total: int | None = None, **shown: Any) -> None:
        """Reports `done` of `total` (None: unknown) in a phase, with values to show beside it."""
        self.heartbeat.enter_phase(phase)
        now = time.monotonic()
        if not self._enabled or (phase == self._phase and done != total and now < self._next):
            return
        self._next = now + (0.2 if self._file else 5.0)
        self._phase = phase
        position = {"phase": phase, "done": done, "total": total, **shown}
        if self._file is None:
            print(f"{phase}: {done}/{total or '?'} {shown or ''}".rstrip(), flush=True)
            return
        write_text(self._file, json.dumps(position), is_durable=False)

    def enter_phase(self, phase: str) -> None:
        """Notes what this rank alone begins. It is not shown, and costs nothing."""
        self.heartbeat.enter_phase(phase)

    def say(self, line: str, of_any_rank: bool = False) -> None:
        """Prints a line that the user should read, of rank 0 or of whichever rank has one to say; the launcher of rank
        0's node shows it above the progress."""
        if not (self._enabled or of_any_rank):
            return
        print(line, flush=True)
        if self._file is not None:
            with self._file.with_suffix(".txt").open("a", encoding="utf-8") as file:  # `LocalFolder.notes_file`
                file.write(f"{line}\n")
