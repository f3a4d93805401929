"""This module shows a run's progress: a bar on a terminal, a line now and then in a log."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import suppress
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from scaleup.artifacts.files import read_json
from scaleup.artifacts.local_folder import LocalFolder

LINE_SECONDS = 15.0


def progress_bars(console: Console) -> Progress:
    """Returns bars, none of them where there is no terminal; each has a text behind it, `shown`."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[shown]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
    )


class Watch:
    """Reads the progress files of groups whose first rank is on this node. Use as a context manager around the time
    that the run takes."""

    def __init__(self, local: LocalFolder, console: Console, names: Mapping[str, str]) -> None:
        """`names`: what stands before the phases of each group."""
        self._console = console
        self._bar = progress_bars(console)
        self._tracks = [_Track(local, group, console, self._bar, name) for group, name in names.items()]

    def __enter__(self) -> Watch:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def refresh(self) -> None:
        for track in self._tracks:
            track.refresh()

    def say(self, line: str) -> None:
        """Print a line of its own, above the bars."""
        self._console.print(line, highlight=False, markup=False, soft_wrap=True)


class _Track:
    """Shows one group's progress. `name` stands before its phases."""

    def __init__(self, local: LocalFolder, group: str, console: Console, bar: Progress, name: str) -> None:
        self._file = local.progress_file(group)
        self._notes = local.notes_file(group)
        self._printed_bytes = 0
        self._console = console
        self._bar = bar
        self._name = name
        self._task = bar.add_task(f"{name}starting", total=None, shown="")
        self._last: dict[str, Any] = {"phase": "starting", "total": None}
        self._next_line = 0.0

    def refresh(self) -> None:
        self._say_notes()
        position: dict[str, Any] = {}
        with suppress(OSError, ValueError):
            position = read_json(self._file)
        if not position or position == self._last:
            return
        shown = " ".join(f"{key} {value}" for key, value in position.items() if key not in ("phase", "done", "total"))
        if position["phase"] != self._last["phase"]:  # a bar a phase: what is over stays above it, full
            whole = self._last["total"] or 1
            self._bar.update(self._task, total=whole, completed=whole)
            self._task = self._bar.add_task(f"{self._name}{position['phase']}", total=position["total"], shown="")
        self._bar.update(self._task, completed=position["done"], shown=shown)
        self._line(position, shown)
        self._last = position

    def _say_notes(self) -> None:
        """Print the whole lines that are new in the group's notes."""
        with suppress(OSError):
            if self._notes.stat().st_size > self._printed_bytes:
                new, end, _ = self._notes.read_bytes()[self._printed_bytes :].rpartition(b"\n")
                self._printed_bytes += len(new + end)
                for line in new.decode(errors="replace").splitlines():
                    self._console.print(line, highlight=False, markup=False, soft_wrap=True)

    def _line(self, position: dict[str, Any], shown: str) -> None:
        new_phase = position["phase"] != self._last["phase"]
        ended = position["total"] is not None and position["done"] == position["total"]
        if self._console.is_terminal or not (new_phase or ended or time.monotonic() >= self._next_line):
            return
        self._next_line = time.monotonic() + LINE_SECONDS
        count = f" {position['done']}/{position['total']}" if position["total"] else ""
        self._console.print(f"{self._name}{position['phase']}{count} {shown}".rstrip(), highlight=False)
