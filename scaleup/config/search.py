"""This module holds the config of a search: which keys of a run's config it changes, how, and what it goes by."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from scaleup.config.fields import Count, Float, Int, Name, Section

Floats = tuple[Float, Float]
Ints = tuple[Int, Int]
Choices = Annotated[list[Any], Field(min_length=1)]
Sampler = Literal["random", "tpe", "grid"]


class Space(Section):
    """Says which values a key may have: those of a list, or the numbers of a range, both ends included."""

    choice: Choices | None = Field(None, description="A list of values of any kind.")
    float: Floats | None = Field(None, description="[low, high].")
    int: Ints | None = Field(None, description="[low, high].")
    log: bool = Field(False, description="Draw from the logarithms: for values whose ratio matters.")
    step: Annotated[Float, Field(gt=0)] | None = Field(None, description="Only low, low + step, ... of a range.")
    points: Count | None = Field(
        None, description="Of a grid: how many values a range has there, evenly spaced, or their logarithms with `log`."
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (mistake := _mistake_of(self)) is not None:
            raise ValueError(mistake)
        return self


def _mistake_of(space: Space) -> str | None:
    kinds = [name for name in ("choice", "float", "int") if getattr(space, name) is not None]
    if len(kinds) != 1:
        return "should have one of choice, float and int, e.g. {float: [1.0e-5, 1.0e-2], log: true}"
    if space.choice is not None:
        repeated = [each for place, each in enumerate(space.choice) if each in space.choice[:place]]
        if repeated:
            return f"should list {repeated[0]!r} once"
        ranged = [name for name in ("step", "points") if getattr(space, name) is not None] + ["log"] * space.log
        return f"should have no {ranged[0]}: a choice is a list" if ranged else None
    low, high = bounds(space)
    if low >= high:
        return f"should begin below its end: {low:g} is not below {high:g}"
    if space.log and low <= 0:
        return "should begin above 0, as it has log: true"
    if space.step is not None and (space.log or space.points is not None):
        return "should have one of step, log and points" if space.points else "should have either step or log"
    if space.int is not None and space.step is not None and space.step != round(space.step):
        return "should have a whole step"
    return None


def bounds(space: Space) -> tuple[Any, Any]:
    """Returns the ends of a range."""
    low, high = space.float or space.int or (math.nan, math.nan)
    return low, high


def ends(space: Space) -> list[Any]:
    """Returns the values that a check looks at: all choices, or both ends of a range."""
    return list(space.choice) if space.choice is not None else list(bounds(space))


def grid_values(space: Space) -> Sequence[Any] | None:
    """Returns the values that a grid has; None of a range that does not say how many."""
    if space.choice is not None:
        return list(space.choice)
    low, high = bounds(space)
    if space.points is not None:
        spaced = _spaced(low, high, space.points, space.log)
        return list(dict.fromkeys(round(each) for each in spaced)) if space.int else spaced
    if space.step is None:
        return range(low, high + 1) if space.int and not space.log else None
    if space.int is not None:
        return range(low, high + 1, round(space.step))
    count = math.floor((high - low) / space.step + 1e-9) + 1
    return [low + number * space.step for number in range(count)]


def _spaced(low: float, high: float, count: int, log: bool) -> list[Any]:
    """Returns so many numbers from low to high, the ends as they are written."""
    start, end = (math.log(low), math.log(high)) if log else (low, high)
    inner = [start + (end - start) * place / (count - 1) for place in range(1, count - 1)]
    numbers = [float(f"{math.exp(each) if log else each:.12g}") for each in inner]
    return [low, *numbers, *([high] if count > 1 else [])]


class AshaConfig(Section):
    """Says at which steps trials are compared, and how many go on."""

    min_steps: Count = Field(description="Steps of a trial before it is compared for the first time.")
    reduction_factor: Annotated[Int, Field(ge=2)] = Field(
        3, description="One in so many goes on, to so many times as many steps."
    )
    sampler: Sampler = Field("random", description="What chooses the values of a new trial.")

    def rungs(self, num_steps: int) -> list[int]:
        """Returns the steps at which trials of so many steps are compared, their end left out."""
        rungs, step = [], self.min_steps
        while step < num_steps:
            rungs.append(step)
            step *= self.reduction_factor
        return rungs


class SearchConfig(Section):
    """Holds a search: one run, tried with several values of some of its keys."""

    study: Name = Field(description="Names the search; its trials are the runs STUDY-000, STUDY-001, ...")
    run: dict[str, Any] = Field(description="The run: `config`, a file or the config itself, and `overrides`.")
    space: dict[str, Space] = Field(description="Maps dotted keys of the run's config to their values.")
    method: Literal["grid", "random", "tpe", "asha"] = Field("tpe", description="How trials are chosen.")
    num_trials: Count | None = Field(None, description="Number of trials; that of a grid follows from its space.")
    num_parallel: Count = Field(1, description="Trials at a time, each with its share of cores and GPUs.")
    objectives: dict[str, Literal["minimize", "maximize"]] = Field(
        description="Maps metrics that a trial logs to what is wanted of them; of several, the best is a Pareto front."
    )
    asha: AshaConfig | None = Field(None, description="Of `method: asha`.")
    seed: Annotated[Int, Field(ge=0)] = 0

    @property
    def sampler(self) -> Sampler:
        """Returns what chooses the values of a new trial."""
        if self.method == "asha":
            return self.asha.sampler if self.asha is not None else "random"
        return self.method


STAND_INS: dict[str, Any] = {"study": "stand-in", "run": {}, "space": {}, "objectives": {}}
"""Holds values of required keys: enough to look for mistakes elsewhere in a file that leaves them out."""
LEFT_TO_THE_SEARCH = ("name", "runs_dir", "stage", "cluster", "train.stop_at_step")
"""Names the keys that no space may hold: they are the same for all trials, or the search's own."""


def key_problems(keys: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yields the keys of a space that are not a trial's to choose, and why."""
    for key in keys:
        if any(key == each or key.startswith(f"{each}.") for each in LEFT_TO_THE_SEARCH):
            yield key, "is the same for all trials, or the search's own"
        for other in keys:
            if key.startswith(f"{other}."):
                yield key, f"lies within space.{other}, which replaces it"
