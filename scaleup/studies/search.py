"""A search's YAML goes in; what each of its trials would run comes out, with every mistake of the file.

    study: lr
    run: {config: ../sft/tiny.yaml, overrides: {train.max_steps: 40}}
    space: {train.learning_rate: {float: [1.0e-5, 1.0e-2], log: true}}
    method: asha
    num_trials: 16
    objectives: {eval_loss: minimize}
    asha: {min_steps: 5}

A trial is an ordinary run, STUDY-NNN, whose config is `run` with a value for each key of the space."""

from __future__ import annotations

import copy
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from scaleup.artifacts.run_folder import RunFolder, differing_keys
from scaleup.artifacts.study import StudyFolder, StudyRecord
from scaleup.config.fields import absolute
from scaleup.config.load import Loaded, Raw, apply_override, load_mapping, put
from scaleup.config.mistakes import Key, as_problem, real_key
from scaleup.config.run import RunConfig
from scaleup.config.search import STAND_INS, SearchConfig, Space, grid_values, key_problems
from scaleup.errors import Problem, ScaleupError
from scaleup.plan.extras import missing_modules, remedy
from scaleup.studies.pipeline import config_of

Params = Mapping[str, Any]
IN_ANY_ORDER = ("grid", "random")
"""Names the methods whose trials follow from the file alone, and not from what others came to."""


@dataclass(frozen=True)
class Search:
    config: SearchConfig
    base: Raw
    """Is the run's config as it is written, with its overrides."""
    problems: list[Problem]
    """Holds mistakes of the file; the config is that of what is left."""

    @cached_property
    def folder(self) -> StudyFolder:
        runs_dir = self.base.get("runs_dir", RunConfig.model_fields["runs_dir"].default)
        return StudyFolder(Path(absolute(str(runs_dir))) / self.config.study)

    def trial_run(self, number: int) -> RunFolder:
        return RunFolder(self.folder.trial_folder(number))

    def load(self, params: Params, number: int = 0, stop_at_step: int | None = None) -> Loaded:
        """Returns the config of a trial. `stop_at_step`: where it stops to be compared; None: it runs to its end."""
        raw, problems = copy.deepcopy(self.base), []
        for key, value in params.items():
            try:
                put(raw, key, copy.deepcopy(value))
            except ScaleupError as error:
                problems += error.problems
        raw["name"] = self.folder.trial_folder(number).name
        if stop_at_step is not None:
            put(raw, "train.stop_at_step", stop_at_step)
        loaded = load_mapping(raw)
        return Loaded(loaded.config, [*problems, *loaded.problems])

    @cached_property
    def grid(self) -> list[Params]:
        """Returns the points of the grid, the last key fastest."""
        axes = [grid_values(space) or [] for space in self.config.space.values()]
        return [dict(zip(self.config.space, point, strict=True)) for point in itertools.product(*axes)]

    @property
    def num_trials(self) -> int:
        config = self.config
        return config.num_trials or (len(self.grid) if config.sampler == "grid" else 0)

    @property
    def definition(self) -> dict[str, Any]:
        """Returns what its trials follow from."""
        config = self.config.model_dump(mode="json", exclude={"run", "num_trials", "num_parallel", "study"})
        whole: dict[str, Any] = json.loads(json.dumps({"run": self.base, **config}, default=str))  # as it is read back
        return whole

    def new_record(self) -> StudyRecord:
        return StudyRecord(study=self.config.study, definition=self.definition, objectives=dict(self.config.objectives))

    def metric(self) -> str:
        """Returns the objective by which unfinished trials are compared: the only one, or the first."""
        return next(iter(self.config.objectives))


def read_search(file: Path, raw: Raw, overrides: Sequence[str] = ()) -> Search:
    """Returns the search of the mapping that a file holds, with its mistakes. `overrides` are KEY=VALUE of the search,
    or run.KEY=VALUE of its run."""
    raw, problems = copy.deepcopy(raw), []
    of_run = [each.removeprefix("run.") for each in overrides if each.startswith("run.")]
    for override in (each for each in overrides if not each.startswith("run.")):
        try:
            _override(raw, override)
        except ScaleupError as error:
            problems += error.problems
    base: Raw = {}
    if "run" in raw:
        try:
            base, mistakes = config_of("run", raw["run"], file.parent, of_run)
            problems += mistakes
        except ScaleupError as error:
            problems += error.problems
            raw["run"] = {}
    config = _validated(raw, problems)
    problems += _problems(config, raw)
    return Search(config, base, problems)


def _override(raw: Raw, override: str) -> None:
    """Puts the value of KEY=VALUE into a search; `space.` stands before a dotted key of the run, which is one key."""
    key, equals, _ = override.partition("=")
    if not key.startswith("space.") or not equals:
        apply_override(raw, override)
        return
    given: Raw = {}
    apply_override(given, f"value{override[len(key) :]}")
    if isinstance(space := raw.setdefault("space", {}), dict):
        space[key.removeprefix("space.")] = given["value"]


def _validated(raw: Raw, problems: list[Problem]) -> SearchConfig:
    """Returns the config of what is left once faulty keys are taken out; the mistakes are added to `problems`."""
    rest = copy.deepcopy(raw)
    try:
        return SearchConfig.model_validate(rest)
    except ValidationError as error:
        for item in error.errors():
            key = real_key(rest, item["loc"])
            problems.append(_as_problem(key, dict(item)))
            section = rest.get("space")
            if key[0] == "space" and len(key) > 1 and isinstance(section, dict):
                section.pop(key[1], None)
            else:
                rest.pop(str(key[0]), None)
    return SearchConfig.model_validate(STAND_INS | rest)


def _as_problem(key: Key, item: dict[str, Any]) -> Problem:
    """Returns what is wrong at a key, of which that of the run, in the space, is one part."""
    if key[0] != "space" or len(key) < 3:
        return as_problem(SearchConfig, key, item, {})
    problem = as_problem(Space, key[2:], item, {})
    return Problem(f"space.{key[1]}.{problem.where}", problem.what, problem.remedy)


def _problems(config: SearchConfig, raw: Raw) -> Iterator[Problem]:
    """Yields what the search's own keys say against one another."""
    for key, why in key_problems(list(config.space)):
        yield Problem(f"space.{key}", why, "leave it out")
    if not config.space and not raw.get("space") and "space" in raw:
        yield Problem("space", "names no key", "write e.g. {train.learning_rate: {float: [1.0e-5, 1.0e-2], log: true}}")
    if not config.objectives and not raw.get("objectives") and "objectives" in raw:
        yield Problem("objectives", "names no metric", "write e.g. {eval_loss: minimize}")
    if config.method == "asha":
        if config.asha is None and not raw.get("asha"):
            yield Problem("asha", "is missing", "say e.g. asha: {min_steps: 10}")
        if len(config.objectives) > 1:
            what = f"compares trials by one metric, and there are {len(config.objectives)}"
            yield Problem("objectives", f"asha {what}", "leave one, or use method: tpe")
    elif config.asha is not None:
        yield Problem("asha", f"has no meaning for method: {config.method}", "leave it out, or say method: asha")
    yield from _size_problems(config)
    if missing_modules("search"):
        yield Problem("method", "searches need optuna, not installed here", remedy("search"))


MOST_TRIALS = 10_000


def _size_problems(config: SearchConfig) -> Iterator[Problem]:
    """Yields a number of trials that is missing or has no meaning, and ranges that make no grid."""
    if config.sampler != "grid":
        if config.num_trials is None:
            yield Problem("num_trials", "is missing", "say how many trials there are")
        for key in (key for key, space in config.space.items() if space.points is not None):
            yield Problem(f"space.{key}.points", "is for a grid", "leave it out, or use step")
        return
    for key, space in config.space.items():
        if grid_values(space) is None:
            yield Problem(f"space.{key}", "is a range, of which a grid needs points", "add points: 5, or step")
    size = grid_size(config)
    if size > MOST_TRIALS:
        yield Problem("space", f"is a grid of {size:,} points", "use fewer, or method: random")
    elif config.num_trials is not None and config.num_trials != size:
        yield Problem("num_trials", f"is {config.num_trials}, and the grid has {size} points", "leave it out")


def grid_size(config: SearchConfig) -> int:
    """Returns how many points a grid has, without making them; a range that makes none counts as one value."""
    return prod(len(grid_values(space) or [None]) for space in config.space.values())


def refuse_another(search: Search, record: StudyRecord) -> None:
    """Raises ScaleupError where a folder holds a search whose trials followed from something else."""
    if changed := differing_keys(record.definition, search.definition):
        shown = ", ".join(changed[:3]) + (f" and {len(changed) - 3} more" if len(changed) > 3 else "")
        what = f"holds another search, which differs in {shown}"
        raise ScaleupError.of(f"study ({search.folder.path})", what, "choose another name")
    if len(record.trials) > search.num_trials:
        what = f"is {search.num_trials}, and {len(record.trials)} trials are there"
        raise ScaleupError.of("num_trials", what, f"use {len(record.trials)} or more")
