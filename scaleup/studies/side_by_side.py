"""The runs of a pipeline that there is something to do for go in; as many as the machine has shares run at a time, each
once its inputs are there, and the exit code comes out. What each prints is shown with its name before it."""

from __future__ import annotations

import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import IO

from rich.console import Console

from scaleup.artifacts.files import write_text
from scaleup.config.load import dump
from scaleup.errors import Problem, ScaleupError
from scaleup.launcher.ending import RESUMABLE
from scaleup.launcher.signals import StopSignals
from scaleup.plan.machine import this_machine
from scaleup.studies.pipeline import Pipeline, of_run
from scaleup.studies.shares import POLL_SECONDS, Slot, ask_to_stop, slots_of, start_on, wait_for_leftovers
from scaleup.studies.start import make_room

LAST_SECONDS = 5.0
"""Is what is waited for the last words of a run that has ended: somebody else may hold its output."""


@dataclass
class Running:
    """Stands for the command that makes a run now."""

    name: str
    slot: Slot
    process: subprocess.Popen[bytes]
    reader: Thread


class SideBySide:
    """Makes runs of a pipeline side by side. Once one has not finished no other begins; those that run go on."""

    def __init__(self, pipeline: Pipeline, todo: Sequence[str], console: Console) -> None:
        self._pipeline, self._console = pipeline, console
        self._left = list(todo)
        self._width = max(map(len, todo))
        self._free = slots_of(this_machine(), pipeline.num_parallel)
        self._running: list[Running] = []
        self._signals = StopSignals()
        self._code = 0
        self._problems: list[Problem] = []

    def run(self) -> int:
        """Makes them. Returns the exit code of the first that did not finish; that of a stopped run after a signal.

        Raises ScaleupError, once the others have ended, for a run whose folder cannot be used."""
        runs = {name: self._pipeline.runs[name].folder for name in self._left}
        with (
            self._signals,
            self._signals.passed_to(self._stop),
            tempfile.TemporaryDirectory(prefix="scaleup-") as place,
        ):
            try:
                wait_for_leftovers(runs, self._signals, self._say)
                while self._fill(Path(place)):
                    time.sleep(POLL_SECONDS)
                    self._reap()
            finally:
                self._end()
        if self._problems:
            raise ScaleupError(self._problems)
        return self._code or (RESUMABLE if self._signals.count and self._left else 0)

    def _fill(self, place: Path) -> bool:
        """Begins runs as long as there are shares. Returns whether any runs."""
        while self._free and not (self._signals.count or self._code or self._problems):
            name = next((each for each in self._left if self._is_due(each)), None)
            if name is None:
                break
            self._left.remove(name)
            try:
                self._begin(name, place)
            except ScaleupError as error:
                self._problems = of_run(name, error.problems)
        return bool(self._running)

    def _is_due(self, name: str) -> bool:
        unmade = {*self._left, *(each.name for each in self._running)}
        return unmade.isdisjoint(self._pipeline.runs[name].parents)

    def _begin(self, name: str, place: Path) -> None:
        run = self._pipeline.runs[name]
        if not make_room(run, self._console):
            return
        file = place / f"{name}.yaml"
        write_text(file, dump(run.config))
        slot = self._free.pop(0)
        process = start_on(slot, file, subprocess.PIPE)
        assert process.stdout is not None
        reader = Thread(target=self._show, args=(name, process.stdout), daemon=True)
        reader.start()
        self._running.append(Running(name, slot, process, reader))
        if self._signals.count:  # one that came in between has not reached it
            self._stop()

    def _reap(self) -> None:
        for each in [each for each in self._running if each.process.poll() is not None]:
            self._running.remove(each)
            self._free.append(each.slot)
            each.reader.join(LAST_SECONDS)
            if code := each.process.returncode:
                # negative: by a signal, which a shell tells by 128 more
                self._code = self._code or (code if code > 0 else 128 - code)
                self._left.append(each.name)
                waits = ", ".join(other.name for other in self._running)
                more = f"; waiting for {waits}" if waits else ""
                self._say(f"runs.{each.name} ended with exit code {code}{more}")

    def _stop(self) -> None:
        for each in self._running:
            ask_to_stop(each.process, self._signals.at_once)

    def _end(self) -> None:
        """Waits for the runs that are there: after a signal, or an error of ours, each saves and stops."""
        if self._running and not self._signals.count:
            self._stop()
        while self._running:
            time.sleep(POLL_SECONDS)
            self._reap()

    def _show(self, name: str, output: IO[bytes]) -> None:
        with output:
            for line in output:
                self._say(f"{name:<{self._width}} | {line.decode(errors='replace').rstrip()}")

    def _say(self, line: str) -> None:
        self._console.print(line, soft_wrap=True, markup=False, highlight=False)
