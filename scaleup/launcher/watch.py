"""Shows a run's progress: a bar on a terminal, a line now and then in a log."""

from __future__ import annotations

import time
from contextlib import suppress
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from scaleup.artifacts.files import read_json
from scaleup.artifacts.run_folder import Attempt

LINE_SECONDS = 15.0


class Watch:
    """Reads the attempt's progress file. Use as a context manager around the time that the run takes."""

    def __init__(self, attempt: Attempt, console: Console) -> None:
        self._file = attempt.progress_file
        self._console = console
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[shown]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task("starting", total=None, shown="")
        self._last: dict[str, Any] = {"phase": "starting", "total": None}
        self._next_line = 0.0

    def __enter__(self) -> Watch:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def refresh(self) -> None:
        position: dict[str, Any] = {}
        with suppress(OSError, ValueError):
            position = read_json(self._file)
        if not position or position == self._last:
            return
        shown = " ".join(f"{key} {value}" for key, value in position.items() if key not in ("phase", "done", "total"))
        if position["phase"] != self._last["phase"]:  # a bar a phase: what is over stays above it, full
            whole = self._last["total"] or 1
            self._bar.update(self._task, total=whole, completed=whole)
            self._task = self._bar.add_task(position["phase"], total=position["total"], shown="")
        self._bar.update(self._task, completed=position["done"], shown=shown)
        self._line(position, shown)
        self._last = position

    def _line(self, position: dict[str, Any], shown: str) -> None:
        new_phase = position["phase"] != self._last["phase"]
        ended = position["total"] is not None and position["done"] == position["total"]
        if self._console.is_terminal or not (new_phase or ended or time.monotonic() >= self._next_line):
            return
        self._next_line = time.monotonic() + LINE_SECONDS
        count = f" {position['done']}/{position['total']}" if position["total"] else ""
        self._console.print(f"{position['phase']}{count} {shown}".rstrip(), highlight=False)
