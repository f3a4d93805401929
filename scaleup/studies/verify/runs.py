"""A twin's runs go in; they are made, one after another and each once, and their folders come out."""

from __future__ import annotations

import random
import shutil
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import yaml

from scaleup.artifacts.checkpoints import whole_checkpoints
from scaleup.artifacts.files import write_text
from scaleup.config.load import Raw
from scaleup.launcher.ending import RESUMABLE
from scaleup.launcher.signals import StopSignals
from scaleup.plan.machine import this_machine
from scaleup.studies.shares import POLL_SECONDS, ask_to_stop, slots_of, start_on
from scaleup.studies.verify.equalities import REFERENCE, TwinRun
from scaleup.studies.verify.twin import changed, with_dropout

LONGEST = 300
"""Bounds the letters of a failed run's last words."""
KILL_SEED, LONGEST_WAIT, KILL_POLL_SECONDS, NUM_TRIES = 20261201, 0.2, 0.005, 3
"""Say when a run is killed: so long after its first checkpoint, in seconds, drawn from a fixed seed. A machine on which
it has ended by then is given other draws, each of at most half as long."""
KILLED, MISTAKE = -9, 2
"""Are the exit codes of a run that was killed, and of one with a mistake of the user's."""


class RunFailed(Exception):
    """Tells that a run did not end as it was to, and how it ended."""


class RunRefused(RunFailed):
    """Tells that a run was refused before it started, and why. It is never the one that all others are compared with,
    whose refusal is that of the twin, nor one that goes on: what has started may go on."""


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
        code = self._killed(folder, file, log) if run.is_killed else self._run(file, log)
        self.say(f"run {run.name}: {time.monotonic() - began:.0f} s")
        if code == (KILLED if run.is_killed else RESUMABLE if run.stops else 0):
            return folder
        if run.is_killed and code == 0:
            return RunFailed(f"run {run.name} had ended before it could be killed, {NUM_TRIES} times -> see {log}")
        if code == MISTAKE and run.name != REFERENCE and before is None and not (folder / "attempts").exists():
            return RunRefused(f"it is refused: {_last_words(log)}")
        return RunFailed(f"run {run.name} ended with exit code {code}: {_last_words(log)} -> see {log}")

    def _config(self, run: TwinRun) -> Raw:
        """Returns a run's config. Raises RunFailed where the run that it exports did not end as it was to."""
        if run.exports is None:
            changes = {**(with_dropout(self.twin) if run.has_dropout else {}), **run.changes}
            return changed(self.twin, run.name, changes)
        model = {"path": str(self.folder(run.exports))}
        return {"stage": "export", "name": run.name, "runs_dir": str(self.place), "model": model}

    def _killed(self, folder: Path, file: Path, log: Path) -> int:
        """Makes a run and kills all of its processes at a moment after its first checkpoint; once more where it was
        quicker. Returns how it ended: KILLED, or its own exit code."""
        moments, code = random.Random(KILL_SEED), 0
        for number in range(NUM_TRIES):
            shutil.rmtree(folder, ignore_errors=True)
            code = self._run(file, log, _Kill(folder / "checkpoints", moments.random() * LONGEST_WAIT / 2**number))
            if code != 0:
                break
        return code

    def _run(self, file: Path, log: Path, kill: _Kill | None = None) -> int:
        (slot,) = slots_of(this_machine(), 1)
        if self.signals.count:
            raise Interrupted
        with log.open("wb") as output:
            process = start_on(slot, file, output)
            with self.signals.passed_to(lambda: ask_to_stop(process, self.signals.at_once)):
                if self.signals.count:  # one that came in between has not reached it
                    ask_to_stop(process, self.signals.at_once)
                while process.poll() is None:
                    time.sleep(KILL_POLL_SECONDS if kill else POLL_SECONDS)
                    if kill is not None and kill.is_due():
                        kill_tree(process)
        if self.signals.count:
            raise Interrupted
        return process.returncode


@dataclass
class _Kill:
    """Tells when a run is to be killed: so many seconds after it has a checkpoint."""

    checkpoints: Path
    seconds: float
    first_seen: float | None = None

    def is_due(self) -> bool:
        if self.first_seen is None and whole_checkpoints(self.checkpoints):
            self.first_seen = time.monotonic()
        return self.first_seen is not None and time.monotonic() - self.first_seen >= self.seconds


def kill_tree(process: subprocess.Popen[bytes]) -> None:
    """Kills a process and all that descend from it, and waits until they are gone. They are frozen first, so that none
    starts another one, or ends by itself, while the others are being killed."""
    try:
        tree = [psutil.Process(process.pid)]
    except psutil.NoSuchProcess:
        return
    frozen: set[psutil.Process] = set()
    while new := [each for each in tree if each not in frozen]:
        for each in new:
            with suppress(psutil.NoSuchProcess):
                each.suspend()
        frozen.update(new)
        with suppress(psutil.NoSuchProcess):
            tree = [tree[0], *tree[0].children(recursive=True)]
    for each in frozen:
        with suppress(psutil.NoSuchProcess):
            each.kill()
    process.wait()
    psutil.wait_procs([each for each in frozen if each.pid != process.pid])


def _last_words(log: Path) -> str:
    """Returns the mistakes that a run was refused for, or else the last line that it printed."""
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    mistakes = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    return "; ".join(mistakes or lines[-1:])[:LONGEST]
