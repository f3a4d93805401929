"""This module lays out the folder of a search, and keeps its record: what each trial is, how far it came, and what it
came to. Whatever a trial's own folder tells is read there again; the record is written whole, or not at all."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, Field, ValidationError

from scaleup.artifacts.files import read_json, write_json, write_text
from scaleup.errors import ScaleupError

TrialState = Literal["running", "paused", "pruned", "finished", "failed"]
"""Says how a trial is: `running` is also one that was interrupted and goes on; `paused` waits at a rung for others;
`pruned` was left at one."""
Direction = Literal["minimize", "maximize"]


class Trial(BaseModel):
    """Holds what is known of one trial."""

    number: int
    params: dict[str, Any]
    """Maps the keys of the space -> this trial's values."""
    state: TrialState = "running"
    steps: int = 0
    """Counts the steps that it has trained."""
    stop_at_step: int | None = None
    """Is the rung that it was last started for; None: its end."""
    rungs: dict[int, float | None] = Field(default_factory=dict)
    """Maps the steps at which it was compared -> its objective there; None: no finite number."""
    values: dict[str, float | None] = Field(default_factory=dict)
    """Maps the objectives of a finished trial -> their values."""
    error: str = ""


class StudyRecord(BaseModel):
    """Holds what is known of a search."""

    study: str
    definition: dict[str, Any]
    """Is what trials follow from: with another one it would be another search."""
    objectives: dict[str, Direction]
    trials: list[Trial] = Field(default_factory=list)
    is_complete: bool = False

    @property
    def num_steps(self) -> int:
        """Returns the steps that all trials together have trained."""
        return sum(trial.steps for trial in self.trials)

    def shown_value(self, trial: Trial, objective: str) -> float | None:
        """Returns what a trial came to; where it was pruned, at its last rung."""
        if trial.state != "finished" and trial.rungs and objective == next(iter(self.objectives)):
            return trial.rungs[max(trial.rungs)]
        return trial.values.get(objective)

    @property
    def ranked(self) -> list[Trial]:
        """Returns the trials, best first: finished ones, then by how far they came and what they were there."""
        return sorted(self.trials, key=lambda trial: _rank(trial, self.objectives))

    @property
    def best(self) -> list[Trial]:
        """Returns the best trial; of several objectives those that no other finished one is better than (the Pareto
        front)."""
        finished = [trial for trial in self.ranked if trial.state == "finished"]
        if len(self.objectives) == 1:
            return finished[:1]
        return [trial for trial in finished if not any(_dominates(other, trial, self.objectives) for other in finished)]


def cost(value: float | None, direction: Direction) -> float:
    """Returns a number that is the less the better, infinite of what is no finite number."""
    if value is None:
        return float("inf")
    return value if direction == "minimize" else -value


def _costs(trial: Trial, objectives: Mapping[str, Direction]) -> list[float]:
    return [cost(trial.values.get(name), direction) for name, direction in objectives.items()]


def _dominates(one: Trial, other: Trial, objectives: Mapping[str, Direction]) -> bool:
    left, right = _costs(one, objectives), _costs(other, objectives)
    return left != right and all(a <= b for a, b in zip(left, right, strict=True))


def _rank(trial: Trial, objectives: Mapping[str, Direction]) -> tuple[Any, ...]:
    if trial.state == "finished":
        return 0, 0, _costs(trial, objectives), trial.number
    rung = max(trial.rungs, default=0)
    direction = next(iter(objectives.values()))
    return 1 + (trial.state == "failed"), -rung, [cost(trial.rungs.get(rung), direction)], trial.number


@dataclass(frozen=True)
class StudyFolder:
    """Stands for `<runs_dir>/<study>`, beside the folders of its trials."""

    path: Path

    @property
    def study_file(self) -> Path:
        return self.path / "study.json"

    @property
    def table_file(self) -> Path:
        return self.path / "trials.csv"

    def config_file(self, number: int) -> Path:
        """Return the config that a trial is started with."""
        return self.path / "trials" / f"{number:03d}.yaml"

    def log_file(self, number: int) -> Path:
        """Return the file that takes what a trial's command prints."""
        return self.path / "trials" / f"{number:03d}.log"

    def trial_folder(self, number: int) -> Path:
        return self.path.with_name(f"{self.path.name}-{number:03d}")

    def read(self) -> StudyRecord | None:
        """Return the record; None where there is none yet. Raises ScaleupError if it cannot be read."""
        if not self.study_file.is_file():
            return None
        try:
            return StudyRecord.model_validate(read_json(self.study_file))
        except (OSError, ValueError, ValidationError) as error:
            what = f"cannot be read: {' '.join(str(error).split())[:200]}"
            remedy = "choose another name for the study, or move its folder away"
            raise ScaleupError.of(str(self.study_file), what, remedy) from error

    def write(self, record: StudyRecord) -> None:
        """Write the record and the table of trials."""
        self.study_file.parent.mkdir(parents=True, exist_ok=True)
        write_json(self.study_file, record.model_dump(mode="json"))
        write_text(self.table_file, _table(record))


def _table(record: StudyRecord) -> str:
    """Returns the trials as CSV: a row each, in the order of their numbers."""
    params = list(record.trials[0].params) if record.trials else []
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["trial", "state", "steps", *record.objectives, *params])
    for trial in record.trials:
        values = [record.shown_value(trial, name) for name in record.objectives]
        settings = [json.dumps(each) if isinstance(each, (list, dict)) else each for each in trial.params.values()]
        writer.writerow([trial.number, trial.state, trial.steps, *values, *settings])
    return text.getvalue()


def param_text(value: Any) -> str:
    """Returns a value of a space as text: numbers short, all else as JSON."""
    if isinstance(value, str):
        return value
    return f"{value:.6g}" if isinstance(value, float) else json.dumps(value)
