"""A search goes in; its trials are run, several at a time, and its best ones come out: as a table, CSV, JSON and plots.

A search that was stopped or killed, at whatever moment, goes on with the same command: a trial is recorded before it
starts, all else is read from its folder, and a trial that was interrupted goes on from its newest checkpoint."""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from scaleup.artifacts.run_folder import RunFolder
from scaleup.artifacts.study import StudyRecord, Trial, param_text
from scaleup.config.load import Raw
from scaleup.errors import Problem, ScaleupError
from scaleup.launcher.ending import RESUMABLE
from scaleup.launcher.prepare import written
from scaleup.launcher.signals import StopSignals
from scaleup.plan.machine import this_machine
from scaleup.reports.search import show_study, trial_line
from scaleup.studies.asha import Halving
from scaleup.studies.sampling import new_trials
from scaleup.studies.search import IN_ANY_ORDER, Search, read_search, refuse_another
from scaleup.studies.search_check import check_search
from scaleup.studies.search_plots import plot
from scaleup.studies.search_watch import SearchWatch
from scaleup.studies.shares import POLL_SECONDS, Slot, slots_of, wait_for_leftovers
from scaleup.studies.steps import change_of
from scaleup.studies.trials import TrialProcess, is_refused, note_end, note_folder, start_trial


@dataclass(frozen=True)
class SearchOptions:
    """Holds what the command line says of a search."""

    overrides: Sequence[str] = ()
    is_dry: bool = False
    as_json: bool = False
    retries: bool = False
    """Tells whether trials that failed are tried again."""


def run_search(file: Path, raw: Raw, options: SearchOptions, console: Console) -> int:
    """Checks a search, then runs what is left of it. Returns the exit code: 0 once all trials have ended and one has
    finished, 75 where a signal stopped it, 1 where every trial failed.

    Raises ScaleupError with every mistake before any trial starts."""
    search = read_search(file, raw, options.overrides)
    if not search.problems and not options.retries and (record := search.folder.read()) is not None:
        refuse_another(search, record)
        if record.is_complete and len(record.trials) == search.num_trials:
            _show(search, record, options, console)
            console.print(f"search {record.study} has finished already; nothing to do", soft_wrap=True)
            return int(not record.best)
    num_steps = check_search(search)
    record = read_record(search)
    if options.is_dry:
        _show(search, record, options, console)
        return 0
    search.folder.path.parent.mkdir(parents=True, exist_ok=True)
    with RunFolder(search.folder.path).locked():
        record = read_record(search)  # again: nobody else changes it now
        for trial in record.trials:
            if options.retries and trial.state == "failed":
                trial.state, trial.error = "running", ""
        code = Runner(search, record, num_steps, console).run()
    _show(search, record, options, console)
    if code == RESUMABLE:
        command = shlex.join(["scaleup", "search", str(file), *options.overrides])
        console.print(f"search {record.study} goes on with: {command}", soft_wrap=True)
    return code


def read_record(search: Search) -> StudyRecord:
    """Returns the record of a search, up to date with its folders; a new one where there is none.

    Raises ScaleupError where the folders hold something else."""
    folder = search.folder
    record = folder.read()
    if record is None:
        is_folder = folder.path.is_dir()
        if folder.path.exists() and not (is_folder and all(each.name == "trials" for each in folder.path.iterdir())):
            raise ScaleupError.of(f"study ({folder.path})", "exists and is no search", "choose another name")
        record = search.new_record()
    refuse_another(search, record)
    record.trials.extend(_submitted(search, record))
    record.is_complete = record.is_complete and len(record.trials) == search.num_trials
    if problems := list(_folder_problems(search, record)):
        raise ScaleupError(problems)
    for trial in record.trials:
        if trial.state in ("running", "paused", "pruned"):
            note_folder(search, trial)
    return record


def _submitted(search: Search, record: StudyRecord) -> list[Trial]:
    """Returns trials that a scheduler's jobs have begun (`search_jobs`): their folders are there, not in the record."""
    if search.config.method not in IN_ANY_ORDER:
        return []
    number = len(record.trials)
    begun = [each for each in range(number, search.num_trials) if search.trial_run(each).config_file.is_file()]
    return new_trials(search, record, max(begun, default=number - 1) + 1)


def _folder_problems(search: Search, record: StudyRecord) -> Iterator[Problem]:
    """Yields folders of trials that hold other runs than they would be now."""
    for trial in record.trials:
        run, config = search.trial_run(trial.number), search.load(trial.params, trial.number).config
        if config is not None and run.config_file.is_file() and (change := change_of(run, config)) is not None:
            what = f"{change}: what its trials came to is not comparable"
            yield Problem(f"study ({run.path})", what, "choose another name for the study, or put back what there was")
    for number in range(len(record.trials), search.num_trials):
        if (path := search.folder.trial_folder(number)).exists():
            yield Problem(f"study ({path})", "is there already, and no trial of this search", "choose another name")


def _show(search: Search, record: StudyRecord, options: SearchOptions, console: Console) -> None:
    if options.as_json:
        print(json.dumps({**record.model_dump(mode="json"), "best": [trial.number for trial in record.best]}, indent=2))
        return
    if options.is_dry:
        left = search.num_trials - len(record.trials)
        line = f"search {record.study}: {search.config.method}, {search.num_trials} trials, {left} have not begun"
        console.print(line, soft_wrap=True)
    show_study(console, record, search.folder)


class Runner:
    """Runs the trials that are left of a search."""

    def __init__(self, search: Search, record: StudyRecord, num_steps: int, console: Console) -> None:
        """`num_steps`: how many steps a trial has."""
        self._search, self._record, self._console = search, record, console
        self._halving: Halving | None = None
        asha = search.config.asha
        if asha is not None:
            direction = search.config.objectives[search.metric()]
            rungs = tuple(asha.rungs(num_steps))
            self._halving = Halving(rungs, asha.reduction_factor, direction, search.num_trials)
        total = self._halving.num_steps(num_steps) if self._halving else search.num_trials * num_steps
        self._watch = SearchWatch(search, record, total, console)
        self._free: list[Slot] = slots_of(this_machine(), search.config.num_parallel)
        self._running: list[TrialProcess] = []
        self._left_alone: set[int] = set()
        """Holds trials that somebody else stopped: they go on when the search is started again."""
        self._signals = StopSignals()

    def run(self) -> int:
        """Runs them until none is left, or a signal comes. Returns the exit code."""
        with self._signals, self._signals.passed_to(self._stop), self._watch as watch:
            try:
                self._wait_for_leftovers()
                self._record.is_complete = False
                self._keep()
                while self._fill():
                    time.sleep(POLL_SECONDS)
                    self._reap()
                    watch.refresh(self._running)
            finally:
                self._end()
        is_over = not self._signals.count and not self._left_alone
        if is_over:
            self._close()
        return RESUMABLE if not is_over else int(not self._record.best)

    def _fill(self) -> bool:
        """Starts trials as long as there are slots. Returns whether any runs."""
        while self._free and not self._signals.count and (trial := self._next()) is not None:
            if trial.state != "running" and self._halving is not None:  # promoted
                trial.stop_at_step = self._halving.stop_after(trial)
            trial.state = "running"
            if is_refused(self._search, trial):
                self._watch.say(f"{self._name(trial)} {trial_line(trial, self._record)}")
                continue
            self._keep()  # first: a trial that has begun is never forgotten
            with written(RunFolder(self._search.folder.path)):
                self._running.append(start_trial(self._search, trial, self._free.pop(0)))
            if self._signals.count:  # one that came in between has not reached it
                self._stop()
            self._watch.say(f"{self._name(trial)} {_how(trial)}")
        return bool(self._running)

    def _next(self) -> Trial | None:
        """Returns the trial to start now; None where there is none, or others must end first."""
        trials = self._record.trials
        busy = {each.trial.number for each in self._running} | self._left_alone
        for trial in trials:
            if trial.state == "running" and trial.number not in busy:
                return trial
        if len(trials) < self._search.num_trials:
            (new,) = new_trials(self._search, self._record, len(trials) + 1)
            new.stop_at_step = self._halving.stop_after(new) if self._halving is not None else None
            trials.append(new)
            return new
        if self._halving is not None and (promoted := self._halving.promotable(trials)) is not None:
            return promoted
        if self._halving is not None and not busy:
            return self._halving.last_promotable(trials)
        return None

    def _reap(self) -> None:
        """Notes the trials that have ended."""
        for each in [each for each in self._running if each.process.poll() is not None]:
            self._running.remove(each)
            self._free.append(each.slot)
            note_end(self._search, each, each.process.returncode)
            if each.trial.state == "running":
                self._left_alone.add(each.trial.number)
            self._keep()
            self._watch.say(f"{self._name(each.trial)} {trial_line(each.trial, self._record)}")

    def _stop(self) -> None:
        for each in self._running:
            each.stop(self._signals.at_once)

    def _end(self) -> None:
        """Waits for the trials that run: after a signal, or an error of ours, each saves and stops."""
        if self._running and not self._signals.count:
            self._stop()
        while self._running:
            time.sleep(POLL_SECONDS)
            self._reap()

    def _wait_for_leftovers(self) -> None:
        """Waits until trials of a search that was killed have saved and stopped."""
        left = [trial for trial in self._record.trials if trial.state in ("running", "paused")]
        runs = {self._name(trial): self._search.trial_run(trial.number) for trial in left}
        wait_for_leftovers(runs, self._signals, self._watch.say)
        for trial in self._record.trials:
            if trial.state == "running":
                note_folder(self._search, trial)

    def _close(self) -> None:
        """Ends the search: what still waits at a rung is pruned."""
        for trial in self._record.trials:
            if trial.state == "paused":
                trial.state = "pruned"
        self._record.is_complete = True
        self._keep()
        plot(self._search, self._record)

    def _keep(self) -> None:
        with written(RunFolder(self._search.folder.path)):
            self._search.folder.write(self._record)

    def _name(self, trial: Trial) -> str:
        return self._search.folder.trial_folder(trial.number).name


def _how(trial: Trial) -> str:
    """Returns how a trial starts, and how far it goes."""
    goal = "" if trial.stop_at_step is None else f" to step {trial.stop_at_step}"
    if trial.steps:
        return f"goes on from step {trial.steps}{goal}"
    return f"begins{goal}: {', '.join(f'{key}={param_text(value)}' for key, value in trial.params.items())}"
