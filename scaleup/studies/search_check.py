"""A search goes in; every mistake of it, of its run and of the values that its space has comes out at once, before any
trial starts.

Each trial is planned for its share of the machine, so that trials side by side are refused what only one would have."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import partial

from scaleup.config.mistakes import suggestion
from scaleup.config.run import RunConfig
from scaleup.config.schema import ModelConfig
from scaleup.config.search import ends
from scaleup.errors import Problem, ScaleupError
from scaleup.plan.describe import Described, Describer, describe_models
from scaleup.plan.extras import DataPlaneMissing
from scaleup.plan.facts import MicroBatch, RowsRequest
from scaleup.plan.machine import Machine, this_machine
from scaleup.plan.resolve import Sources, checked_rows, resolve
from scaleup.plan.stages import planner_of
from scaleup.records.check import DataCheck
from scaleup.studies.search import Params, Search, grid_size
from scaleup.studies.shares import Place, here, share_problems

MOST_POINTS = 100
"""Bounds the points of a grid that are planned before it starts; of larger ones the ends of each key are."""


def check_search(search: Search, place: Place | None = None) -> int:
    """Returns how many steps a trial has. Trials will be at a `place`; None: here, started by the search itself.

    Raises ScaleupError with every mistake; what only models' files can tell is looked for once there is no other."""
    is_here = place is None
    problems = [*search.problems, *(machine_problems(search, this_machine()) if is_here else ())]
    place = place or here(search.config.num_parallel, "search")
    checker = _Checker(search, place, _decline)
    problems += [*checker.problems(), *checker.step_problems()]
    if not problems:
        try:
            with Describer() as describer:
                problems = _Checker(search, place, partial(_describe, describer)).problems()
        except DataPlaneMissing as missing:  # on a login node: each job's own check sees the rest
            if is_here:
                raise
            print(f"note: the models were not looked at: {missing}", file=sys.stderr)
    if problems:
        raise ScaleupError(list(dict.fromkeys(problems)))
    return max(checker.steps, default=1)


class _Undescribed(Exception):
    """Tells that a config has no mistakes that can be seen without its models."""


def _decline(
    models: Mapping[str, ModelConfig], micro_batch: MicroBatch | None, readers: Mapping[str, RowsRequest]
) -> Described:
    raise _Undescribed


def _describe(
    describer: Describer,
    models: Mapping[str, ModelConfig],
    micro_batch: MicroBatch | None,
    readers: Mapping[str, RowsRequest],
) -> Described:
    return describe_models(models, micro_batch, readers, describer.ask)


def machine_problems(search: Search, machine: Machine) -> Iterator[Problem]:
    """Returns more trials side by side than there are devices."""
    parallel = search.base.get("parallel")
    is_on_cpu = isinstance(parallel, dict) and parallel.get("device") == "cpu"
    return share_problems(search.config.num_parallel, is_on_cpu, machine)


def points_of(search: Search) -> Iterator[Params]:
    """Yields points of the space that a check looks at: all of a small grid; else all first and all last values, and
    each other end of a key beside the first ones of the others."""
    space = search.config.space
    if search.config.sampler == "grid" and grid_size(search.config) <= MOST_POINTS:
        yield from search.grid
        return
    first = {key: ends(each)[0] for key, each in space.items()}
    yield first
    for key, each in space.items():
        yield from ({**first, key: value} for value in ends(each)[1:])
    if len(space) > 1:
        yield {key: ends(each)[-1] for key, each in space.items()}


def _values(point: Params, where: str) -> str:
    """Returns the values of a point that a mistake at a config key is about: of the key itself, or all."""
    own = {key: value for key, value in point.items() if where == key or where.startswith(f"{key}.")}
    return ", ".join(f"{key}={value}" for key, value in (own or point).items())


@dataclass
class _Checker:
    search: Search
    place: Place
    describe: Callable[..., Described]
    steps: list[int] = field(default_factory=list)
    """Holds the steps of a trial at each point of the space that is no mistake."""
    _rows: dict[str, DataCheck] = field(default_factory=dict)

    def problems(self) -> list[Problem]:
        points = list(points_of(self.search))
        found: dict[Problem, list[Params]] = {}
        for point in points:
            for problem in self._problems_at(point):
                found.setdefault(problem, []).append(point)
        named = []
        for problem, refused in found.items():
            where = "run: " if len(refused) == len(points) else f"space ({_values(refused[0], problem.where)}): "
            where = "" if problem.where.startswith("objectives.") else where
            named.append(Problem(f"{where}{problem.where}", problem.what, problem.remedy))
        return named

    def _problems_at(self, point: Params) -> list[Problem]:
        loaded = self.search.load(point)
        config = loaded.config
        more = list(_goal_problems(self.search, config)) if config is not None else []
        loaded.problems.extend(more)
        try:
            sources = Sources(self._check, self.describe)
            resolve(*self.place(loaded), check_run_folder=False, peaks=False, sources=sources)
        except DataPlaneMissing:
            raise
        except ScaleupError as error:
            return error.problems
        except _Undescribed:
            assert config is not None
            self.steps.append(num_steps_of(config, self._check(config)))
        return []

    def _check(self, config: RunConfig) -> DataCheck:
        key = f"{config.stage} {config.data.model_dump_json()}"
        if key not in self._rows:
            self._rows[key] = checked_rows(config)
        return self._rows[key]

    def step_problems(self) -> Iterator[Problem]:
        """Yields what asha, which compares trials after as many steps, cannot compare."""
        asha, counts = self.search.config.asha, set(self.steps)
        if self.search.config.method != "asha" or asha is None or not counts:
            return
        if len(counts) > 1:
            what = f"gives trials of {min(counts)} to {max(counts)} steps, and asha compares them after as many"
            yield Problem("space", what, "give the run train.max_steps")
        elif asha.min_steps >= (count := counts.pop()):
            yield Problem("asha.min_steps", f"is {asha.min_steps}, and a trial has {count} steps", "use fewer")


def num_steps_of(config: RunConfig, data: DataCheck) -> int:
    """Returns how many steps a run has, by which it logs: of reinforcement learning rollouts."""
    planner, learner = planner_of(config), planner_of(config).trains_as(config)
    rollouts, batch = planner.rollouts(config, data), planner_of(learner).batch(learner, data)
    if rollouts is not None:
        return rollouts.num_rollouts
    return batch.num_steps or 1 if batch is not None else 1


def _goal_problems(search: Search, config: RunConfig) -> Iterator[Problem]:
    """Yields objectives that a trial does not log, or not where trials are compared, and what no search starts."""
    learner = planner_of(config).trains_as(config)
    logged = planner_of(learner).logged(learner)
    for name in search.config.objectives:
        if any(fnmatchcase(name, pattern) for pattern in logged):
            continue
        remedy = suggestion(name, sorted(logged)) or f"use one of {', '.join(sorted(logged))}"
        if not logged:
            remedy = "search over a run that trains"
        elif name.startswith("eval") and not any(pattern.startswith("eval") for pattern in logged):
            remedy = f"give the run rows to evaluate on, or use one of {', '.join(sorted(logged))}"
        yield Problem(f"objectives.{name}", f"is no metric that stage {config.stage} logs in this run", remedy)
    train = getattr(learner, "train", None)
    if getattr(train, "stop_at_step", None) is not None:
        yield Problem("train.stop_at_step", "is the search's own", "leave it out")
    asha, name = search.config.asha, next(iter(search.config.objectives), "")
    if search.config.method != "asha" or asha is None or train is None:
        return
    key = "eval_steps" if name.startswith("eval") else "logging_steps"
    every = getattr(train, key, None)
    if every is None or asha.min_steps % every:
        told = "is only measured at the end" if every is None else f"is measured every {every} steps"
        what = f"{told}, and asha compares trials after {asha.min_steps}"
        yield Problem(f"train.{key}", f"{name} {what}", f"set it to {asha.min_steps}")
