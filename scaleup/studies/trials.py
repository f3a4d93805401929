"""A trial goes in; its run is started on its share of the machine, and what its folder then tells of it comes out."""

from __future__ import annotations

import math
import subprocess
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from scaleup.artifacts.files import read_json, write_text
from scaleup.artifacts.metrics_log import last_metrics, logged_values
from scaleup.artifacts.study import Trial
from scaleup.config.load import dump
from scaleup.config.run import RunConfig
from scaleup.launcher.ending import RESUMABLE
from scaleup.studies.search import Search
from scaleup.studies.shares import Slot, ask_to_stop, start_on


@dataclass
class TrialProcess:
    """Stands for the command that runs a trial now."""

    trial: Trial
    slot: Slot
    process: subprocess.Popen[bytes]

    def stop(self, at_once: bool) -> None:
        """Asks it to save and to stop, or to end at once."""
        ask_to_stop(self.process, at_once)


def is_refused(search: Search, trial: Trial) -> bool:
    """Returns whether values of a trial make no config together, which no check of each has seen. It has failed
    then."""
    if problems := search.load(trial.params, trial.number, trial.stop_at_step).problems:
        trial.state, trial.error = "failed", str(problems[0])
    return bool(problems)


def start_trial(search: Search, trial: Trial, slot: Slot) -> TrialProcess:
    """Starts, or goes on with, a trial's run, to the rung that it is to stop at."""
    config = search.load(trial.params, trial.number, trial.stop_at_step).config
    assert config is not None
    file, log = search.folder.config_file(trial.number), search.folder.log_file(trial.number)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_text(file, dump(config))
    with log.open("ab") as output:
        return TrialProcess(trial, slot, start_on(slot, file, output))


def note_folder(search: Search, trial: Trial) -> None:
    """Brings a trial up to date with what its folder tells: steps, and the objective at rungs and at the end."""
    run, objectives = search.trial_run(trial.number), search.config.objectives
    trial.steps = max(trial.steps, num_steps_of(search, trial.number))
    if search.config.asha is not None:
        logged = logged_values(run.metrics_file, search.metric())
        trial.rungs |= {
            step: _finite(logged[step])
            for step in search.config.asha.rungs(max(logged, default=0) + 1)
            if step in logged and step <= trial.steps and step not in trial.rungs
        }
    manifest = run.manifest()
    if manifest is None:
        if trial.state == "running" and trial.stop_at_step in trial.rungs and run.resumable_file.is_file():
            trial.state = "paused"
        return
    best = manifest.metrics.get("best_step") if _goes_by_best(run.config) else None
    for name in objectives:
        values = logged_values(run.metrics_file, name)
        step = best if best is not None and best in values else max(values, default=None)
        trial.values[name] = None if step is None else _finite(values[step])
    missing = [name for name in objectives if trial.values[name] is None]
    trial.state = "failed" if missing else "finished"
    trial.error = f"{missing[0]} is no finite number at its end" if missing else ""


def num_steps_of(search: Search, number: int) -> int:
    """Returns how many steps a trial's folder tells of."""
    run = search.trial_run(number)
    with suppress(OSError, ValueError):
        if run.manifest_file.is_file():
            return int(read_json(run.manifest_file)["num_steps"] or 0)
        if run.resumable_file.is_file():
            return int(read_json(run.resumable_file)["step"])
    return int(last_metrics(run.metrics_file).get("step", 0))


def note_end(search: Search, ended: TrialProcess, code: int) -> None:
    """Brings a trial up to date with how its command ended. One that was stopped on its way stays as it is: it goes on
    when the search does."""
    trial = ended.trial
    note_folder(search, trial)
    rung = trial.stop_at_step
    if trial.state == "running" and code == RESUMABLE and rung is not None and trial.steps >= rung:
        trial.rungs[rung], trial.state = None, "paused"  # what it logged there is no number at all
    if trial.state == "running" and code != RESUMABLE and code >= 0:
        trial.state, trial.error = "failed", _last_error(search.folder.log_file(trial.number))


def _last_error(log: Path) -> str:
    lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    told = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    return next(iter([*told[::-1], *lines[::-1]]), "ended without a word")


def _goes_by_best(config: RunConfig) -> bool:
    """Returns whether a run leaves the best weights that it had, and not the last ones."""
    return bool(getattr(getattr(config, "train", None), "load_best_model_at_end", False))


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
