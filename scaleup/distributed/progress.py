"""How far this group is, for whoever watches: the launcher reads the file, a start by hand sees lines."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any


class Progress:
    """Rank 0's latest position. Writes at most five times a second, and always the last position of a phase."""

    def __init__(self, file: Path | None, enabled: bool) -> None:
        self._file = file
        self._enabled = enabled
        self._next = 0.0
        self._phase = ""

    def report(self, phase: str, done: int = 0, total: int | None = None, **shown: Any) -> None:
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
