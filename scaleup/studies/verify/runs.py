"""A twin's runs go in; they are made, one after another and each once, and their folders come out."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from scaleup.artifacts.files import write_text
from scaleup.config.load import Raw
from scaleup.launcher.ending import RESUMABLE
from scaleup.launcher.signals import StopSignals
from scaleup.plan.machine import this_machine
from scaleup.studies.shares import POLL_SECONDS, ask_to_stop, slots_of, start_on
from scaleup.studies.verify.equalities import TwinRun
from scaleup.studies.verify.twin import changed, with_dropout

REFUSED = 2
"""Is the exit code of a mistake of the user's."""
LONGEST = 300
"""Bounds the letters of a failed run's last words."""


class RunFailed(Exception):
    """Tells that a run did not end as it was to, and how it ended."""


class RunRefused(RunFailed):
    """Tells why a run's config was refused, so that nothing started."""


class Interrupted(Exception):
    """Tells that a signal came."""


@dataclass
class TwinRuns:
    """Makes the runs of a twin in a folder."""

    twin: Raw
    place: Path
    signals: StopSignals
    say: Callable[[str], None]
    made: dict[str, Path | RunFailed] = field(default_factory=dict)
    """Maps a run that is made -> its folder, or how it ended."""

    def folder(self, run: TwinRun) -> Path:
        """Returns the folder of a run, which is made now if it was not before. Raises RunFailed where it did not end as
        it was to, and Interrupted."""
        if run.name not in self.made:
            self.made[run.name] = self._make(run)
        made = self.made[run.name]
        if isinstance(made, RunFailed):
            raise made
        return made

    def _make(self, run: TwinRun) -> Path | RunFailed:
        folder, before = self.place / run.name, run.goes_on_from
        if before is not None:
            try:
                shutil.copytree(self.folder(before), folder)
            except RunFailed as error:
                return error
        file, log = (self.place / f"{run.name}.{suffix}" for suffix in ("yaml", "log"))
        try:
            write_text(file, yaml.safe_dump(self._config(run)), is_durable=False)
        except RunFailed as error:
            return error
        began = time.monotonic()
        code = self._run(file, log)
        self.say(f"run {run.name}: {time.monotonic() - began:.0f} s")
        if code == (RESUMABLE if run.stops else 0):
            return folder
        if code == REFUSED and before is None:
            return RunRefused(_last_words(log))
        return RunFailed(f"run {run.name} ended with exit code {code}: {_last_words(log)} -> see {log}")

    def _config(self, run: TwinRun) -> Raw:
        """Returns a run's config. Raises RunFailed where the run that it exports did not end as it was to."""
        if run.exports is None:
            changes = {**(with_dropout(self.twin) if run.has_dropout else {}), **run.changes}
            return changed(self.twin, run.name, changes)
        model = {"path": str(self.folder(run.exports))}
        return {"stage": "export", "name": run.name, "runs_dir": str(self.place), "model": model}

    def _run(self, file: Path, log: Path) -> int:
        (slot,) = slots_of(this_machine(), 1)
        if self.signals.count:
            raise Interrupted
        with log.open("wb") as output:
            process = start_on(slot, file, output)
            with self.signals.passed_to(lambda: ask_to_stop(process, self.signals.at_once)):
                if self.signals.count:  # one that came in between has not reached it
                    ask_to_stop(process, self.signals.at_once)
                while process.poll() is None:
                    time.sleep(POLL_SECONDS)
        if self.signals.count:
            raise Interrupted
        return process.returncode


def _last_words(log: Path) -> str:
    """Returns the mistakes that a run was refused for, or else the last line that it printed."""
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    mistakes = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    return "; ".join(mistakes or lines[-1:])[:LONGEST]
