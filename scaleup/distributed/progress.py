"""How far this group is, for whoever watches: the launcher reads the file, a start by hand sees lines."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from scaleup.distributed.sign import SignOfLife


class Progress:
    """Rank 0's latest position. Writes at most five times a second, and always the last position of a phase. Every rank
    notes in `sign` what it is at."""

    def __init__(self, file: Path | None, enabled: bool, sign: SignOfLife | None = None) -> None:
        self.sign = sign or SignOfLife()
        self._file = file
        self._enabled = enabled
        self._next = 0.0
        self._phase = ""

    def report(self, phase: str, done: int = 0, total: int | None = None, **shown: Any) -> None:
        self.sign.at(phase)
        now = time.monotonic()
        if not self._enabled or (phase == self._phase and done != total and now < self._next):
            return
        self._next = now + (0.2 if self._file else 5.0)
        self._phase = phase
        position = {"phase": phase, "done": done, "total": total, **shown}
        if self._file is None:
            print(f"{phase}: {done}/{total or '?'} {shown or ''}".rstrip(), flush=True)
            return
        aside = self._file.with_suffix(".tmp")
        aside.write_text(json.dumps(position), encoding="utf-8")
        aside.replace(self._file)

    def at(self, phase: str) -> None:
        """Of this rank alone, and not shown: costs nothing."""
        self.sign.at(phase)

    def say(self, line: str) -> None:
        """Of rank 0: a line that the user should read, above what is reported."""
        if not self._enabled:
            return
        print(line, flush=True)
        if self._file is not None:
            with self._file.with_suffix(".txt").open("a", encoding="utf-8") as file:  # `Attempt.notes_file`
                file.write(f"{line}\n")
