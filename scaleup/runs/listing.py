"""A folder of runs goes in; the runs in it come out, each in a line: filtered and sorted."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from math import isfinite
from pathlib import Path
from typing import Any

from scaleup.artifacts.run_folder import RunFolder
from scaleup.artifacts.run_lock import lock_holders
from scaleup.config.stages import STAGES
from scaleup.errors import Problem, ScaleupError
from scaleup.runs.state import STATES, RunState, is_run_folder, parents_of, read_state

DEPTH = 4
"""Bounds how many folders deep runs are looked for: those of a sweep or of a pipeline may lie in folders of their
own."""
SORT_KEYS = ("name", "stage", "state", "step", "eta", "metric", "size", "age")
NOT_A_FIGURE = ("best_step", "num_tokens", "rows_left_out", "rows_too_long", "step")


@dataclass(frozen=True)
class RunLine:
    """Is what a list says of a run."""

    path: Path
    name: str
    stage: str
    state: str
    host: str
    """Names the host on which it goes on; empty where it does not."""
    step: int | None
    num_steps: int | None
    eta_seconds: float | None
    metric: str | None
    """Names the figure that it goes by."""
    value: float | None
    bytes: int
    parents: tuple[Path, ...]
    """Holds the folders of the runs that it was made from."""
    age_seconds: float
    """Is how long ago it was started first."""

    def as_json(self) -> dict[str, Any]:
        return {**vars(self), "path": str(self.path), "parents": [str(parent) for parent in self.parents]}


@dataclass(frozen=True)
class Wanted:
    """Says which runs a list has, and in which order: by age the newest comes first, by size and steps the largest."""

    stage: str | None = None
    state: str | None = None
    sort: str = "age"

    def takes(self, state: RunState) -> bool:
        return self.stage in (None, state.stage) and self.state in (None, state.state)

    def problems(self) -> list[Problem]:
        options = {"stage": STAGES, "state": STATES, "sort": SORT_KEYS}
        return [
            Problem(f"--{name}", f"there is no {name} {value!r}", f"name one of {', '.join(known)}")
            for name, known in options.items()
            if (value := getattr(self, name)) is not None and value not in known
        ]


def list_runs(folder: Path, wanted: Wanted) -> list[RunLine]:
    """Return the runs below a folder.

    Raises ScaleupError for a folder that is not there, and for a stage, a state or a key that is none."""
    problems = wanted.problems()
    if not folder.is_dir():
        problems.append(Problem(str(folder), "is no folder", "name the runs_dir of your configs"))
    if problems:
        raise ScaleupError(problems)
    holders = lock_holders()
    states = (read_state(path, holders) for path in run_folders(folder))
    return sorted((line_of(state) for state in states if wanted.takes(state)), key=partial(_order, wanted.sort))


def run_folders(folder: Path) -> Iterator[Path]:
    """Yield the folders of runs below a folder, by name. What lies in a run folder is that run's, and hidden folders
    are being written or removed. A folder that cannot be looked into holds none."""
    yield from _run_folders(folder, DEPTH)


def _run_folders(folder: Path, depth: int) -> Iterator[Path]:
    if is_run_folder(folder):
        yield folder
        return
    with suppress(OSError):
        inner = sorted(each for each in folder.iterdir() if not each.name.startswith(".") and each.is_dir())
        for each in inner if depth else []:
            yield from _run_folders(each, depth - 1)


def line_of(state: RunState) -> RunLine:
    figures = state.manifest.metrics if state.manifest else state.metrics
    metric, value = headline(figures)
    return RunLine(
        path=state.run.path,
        name=state.run.path.name,
        stage=state.stage,
        state=state.state,
        host=state.place.host if state.place else "",
        step=state.step,
        num_steps=state.num_steps,
        eta_seconds=state.eta_seconds,
        metric=metric,
        value=value,
        bytes=tree_bytes(state.run.path),
        parents=tuple(parents_of(state.run, state.plan)),
        age_seconds=max(0.0, time.time() - begun(state.run)),
    )


def headline(figures: Mapping[str, Any]) -> tuple[str | None, float | None]:
    """Return the figure by which a run is known: the best one that it kept, else one of held-out rows, else a loss or a
    score, else the first there is. Of several models that were evaluated, the first one's."""
    nested = next((value for value in figures.values() if isinstance(value, Mapping)), {})
    own = figures.get("model", nested)
    flat = {**(own if isinstance(own, Mapping) else {}), **figures}
    numbers = {key: float(value) for key, value in flat.items() if _is_figure(key, value)}
    wanted = ("best_", "held_out_after", "eval_", "eval/", "scores", "objective/scores", "train_loss", "loss", "")
    for start in wanted:
        for key, value in numbers.items():
            if key.startswith(start):
                return key, value
    return None, None


def _is_figure(key: str, value: Any) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and isfinite(value) and key not in NOT_A_FIGURE


def tree_bytes(folder: Path) -> int:
    """Return the bytes of all files below a folder. What vanishes meanwhile counts nothing."""
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):
                total += (Path(place) / name).lstat().st_size
    return total


def begun(run: RunFolder) -> float:
    """Returns when a run was started first, in seconds since 1970, by the file system's clock."""
    for place in (run.attempt(1).path, run.config_file):
        with suppress(OSError):
            return place.stat().st_mtime
    return time.time()


def _order(key: str, line: RunLine) -> tuple[bool, Any, str]:
    """Returns by what a line is sorted: those that have no value come last."""
    values: dict[str, Any] = {
        "stage": line.stage,
        "state": STATES.index(line.state) if line.state in STATES else len(STATES),
        "step": None if line.step is None else -line.step,
        "eta": line.eta_seconds,
        "metric": None if line.value is None else (line.metric, line.value),
        "size": -line.bytes,
        "age": line.age_seconds,
    }
    value = values.get(key, line.name)
    return value is None, 0 if value is None else value, line.name
