"""A pipeline's YAML goes in; its runs come out, each with its config and the runs whose folders it names.

    pipeline: reviews
    runs:
      sft: {config: ../sft/reviews.yaml, overrides: {train.max_steps: 40}}
      ppo: {config: ../ppo/reviews.yaml, overrides: {model.path: "${sft}"}}

`${sft}` stands for the folder of the run `sft`, in any value: whoever names it comes after it."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from scaleup.artifacts.run_folder import RunFolder
from scaleup.config.fields import absolute
from scaleup.config.load import Loaded, Raw, apply_override, load_mapping, put, read_mapping
from scaleup.config.mistakes import suggestion
from scaleup.config.run import RunConfig
from scaleup.errors import Problem, ScaleupError
from scaleup.plan.places import texts_of

INPUT = re.compile(r"\$\{([^}]*)\}")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
TOP_KEYS, KEYS = ("pipeline", "num_parallel", "runs"), ("config", "overrides")
NAMED = "use letters, digits, '_' and '-'"
UNKNOWN = "scaleup/stand-in"
"""Is written for a run that there is none of: what it replaces is a mistake."""


@dataclass(frozen=True)
class Input:
    """Stands for a value of a config that names another run."""

    key: str
    run: str
    text: str

    @property
    def is_whole(self) -> bool:
        """Tells whether the value is the run and nothing else: not a file in its folder."""
        return INPUT.fullmatch(self.text) is not None

    @property
    def is_rows(self) -> bool:
        return self.key.startswith("data.")


@dataclass(frozen=True)
class PipelineRun:
    """Stands for one run of a pipeline: its config as it is written, and where the runs are that it names."""

    name: str
    raw: Raw
    problems: tuple[Problem, ...]
    """Holds what is wrong beside the config itself."""
    folders: Mapping[str, Path]
    """Maps each run of the pipeline -> its folder."""

    @cached_property
    def inputs(self) -> tuple[Input, ...]:
        return tuple(each for each in _inputs(self.raw) if each.run in self.folders)

    @cached_property
    def parents(self) -> tuple[str, ...]:
        """Returns the runs that this one needs."""
        return tuple(dict.fromkeys(each.run for each in self.inputs))

    @cached_property
    def loaded(self) -> Loaded:
        """Returns the config as it is run: with the folders of the runs that it names."""
        return self.load(self.folders)

    def load(self, folders: Mapping[str, Path]) -> Loaded:
        """Returns the config with these folders in the place of the runs that it names."""
        loaded = load_mapping(_filled(self.raw, folders))
        return Loaded(loaded.config, [*self.problems, *loaded.problems])

    @property
    def config(self) -> RunConfig:
        assert self.loaded.config is not None
        return self.loaded.config

    @property
    def folder(self) -> RunFolder:
        return RunFolder(self.folders[self.name])


def _inputs(raw: Raw) -> Iterator[Input]:
    yield from (Input(key, name, text) for key, text in texts_of(raw) for name in INPUT.findall(text))


def _filled(value: Any, folders: Mapping[str, Path]) -> Any:
    """Returns a copy of a value with folders in the place of the runs that it names."""
    if isinstance(value, dict):
        return {name: _filled(part, folders) for name, part in value.items()}
    if isinstance(value, list):
        return [_filled(part, folders) for part in value]
    return INPUT.sub(lambda name: str(folders.get(name[1], UNKNOWN)), value) if isinstance(value, str) else value


@dataclass(frozen=True)
class Pipeline:
    name: str
    runs: dict[str, PipelineRun]
    """Holds each run after those that it needs."""
    problems: list[Problem]
    """Holds mistakes of the pipeline itself; the runs are those of what is left."""
    num_parallel: int
    """Is how many run at a time on one machine, each with its share of cores and GPUs."""

    def below(self, name: str) -> list[str]:
        """Returns a run and all that need it, in order."""
        found = {name}
        for run in self.runs.values():
            found |= {run.name} if found & set(run.parents) else set()
        return [each for each in self.runs if each in found]


def of_run(name: str, problems: Iterable[Problem]) -> list[Problem]:
    """Returns the problems of one run's config as those of the pipeline."""
    return [Problem(f"runs.{name}: {each.where}", each.what, each.remedy) for each in problems]


def read_pipeline(file: Path, raw: Raw, overrides: Sequence[str] = ()) -> Pipeline:
    """Returns the pipeline of the mapping that a file holds, with its mistakes. `overrides` are RUN.KEY=VALUE, or
    num_parallel=N.

    Raises ScaleupError where it lists no runs."""
    raw = dict(raw)
    of_all = [each for each in overrides if each.startswith("num_parallel=")]
    for override in of_all:
        apply_override(raw, override)
    overrides = [each for each in overrides if each not in of_all]
    strangers = [key for key in raw if key not in TOP_KEYS]
    problems = [Problem(key, "is no key of a pipeline", f"a pipeline has {', '.join(TOP_KEYS)}") for key in strangers]
    name, entries = raw["pipeline"], raw.get("runs")
    if not isinstance(name, str) or not NAME.fullmatch(name):
        problems.append(Problem("pipeline", f"{name!r} is no name", NAMED))
    num_parallel = raw.get("num_parallel", 1)
    if not isinstance(num_parallel, int) or num_parallel is True or num_parallel < 1:
        problems.append(Problem("num_parallel", f"{num_parallel!r} is no number of runs", "write 1 or more"))
        num_parallel = 1
    if not isinstance(entries, dict) or not entries:
        what = "is no mapping of names to runs" if "runs" in raw else "is missing"
        raise ScaleupError([*problems, Problem("runs", what, "write e.g. runs: {sft: {config: sft.yaml}}")])
    problems += _stray_overrides(overrides, list(entries))
    configs: dict[str, Raw] = {}
    mistakes: dict[str, list[Problem]] = {}
    for each, entry in entries.items():
        own = [rest for start, _, rest in (override.partition(".") for override in overrides) if start == each]
        try:
            configs[each], mistakes[each] = config_of(f"runs.{each}", entry, file.parent, own)
        except ScaleupError as error:
            problems += error.problems
        else:
            configs[each].setdefault("name", f"{name}-{each}")
    folders = {each: _folder_of(config) for each, config in configs.items()}
    runs = {
        each: PipelineRun(each, config, (*mistakes[each], *_unknown(config, list(entries))), folders)
        for each, config in configs.items()
    }
    order, circle = _ordered(runs)
    problems += [*_bad_names(entries), *_shared(folders)]
    if circle:
        problems.append(Problem("runs", f"{' -> '.join(circle)} is a circle", "leave one of these inputs out"))
    return Pipeline(str(name), {each: runs[each] for each in order}, problems, num_parallel)


def _stray_overrides(overrides: Sequence[str], names: Sequence[str]) -> Iterator[Problem]:
    for override in overrides:
        start, dot, _ = override.partition(".")
        if start not in names or not dot:
            near = suggestion(start.partition("=")[0], names)
            remedy = near or f"write RUN.KEY=VALUE; the runs are {', '.join(names)}"
            yield Problem(override, "overrides no run of the pipeline", remedy)


def _bad_names(names: Iterable[str]) -> Iterator[Problem]:
    yield from (Problem(f"runs.{name}", "is no name of a run", NAMED) for name in names if not NAME.fullmatch(name))


def config_of(where: str, entry: Any, folder: Path, overrides: Sequence[str]) -> tuple[Raw, list[Problem]]:
    """Returns a run's config as it is written, and what is wrong with its overrides. Raises ScaleupError where there is
    no config."""
    if not isinstance(entry, dict):
        raise ScaleupError.of(where, "is no mapping", "write e.g. {config: sft.yaml}")
    named, changes = entry.get("config"), entry.get("overrides") or {}
    strangers = [key for key in entry if key not in KEYS]
    problems = [Problem(f"{where}.{key}", "is no key of a run", "a run has config and overrides") for key in strangers]
    if not isinstance(named, (str, dict)):
        what = f"{named!r} is neither a file nor a config" if "config" in entry else "is missing"
        problems.append(Problem(f"{where}.config", what, "name a config file, or write the config there"))
    if not isinstance(changes, dict):
        remedy = "write e.g. {train.max_steps: 40}"
        problems.append(Problem(f"{where}.overrides", f"{changes!r} is no mapping of keys to values", remedy))
    if problems:
        raise ScaleupError(problems)
    try:
        config: Raw = read_mapping(folder / named) if isinstance(named, str) else copy.deepcopy(named or {})
    except ScaleupError as error:
        raise ScaleupError([Problem(f"{where}.config: {p.where}", p.what, p.remedy) for p in error.problems]) from None
    for change in [*changes.items(), *overrides]:
        try:
            apply_override(config, change) if isinstance(change, str) else put(config, *change)
        except ScaleupError as error:
            problems += error.problems
    return config, problems


def _folder_of(config: Raw) -> Path:
    runs_dir = config.get("runs_dir", RunConfig.model_fields["runs_dir"].default)
    return Path(absolute(str(runs_dir))) / str(config["name"])


def _unknown(config: Raw, names: Sequence[str]) -> Iterator[Problem]:
    for each in _inputs(config):
        if each.run not in names:
            remedy = suggestion(each.run, names) or f"the runs are {', '.join(names)}"
            yield Problem(each.key, f"there is no run {each.run!r} in the pipeline", remedy)


def _shared(folders: Mapping[str, Path]) -> Iterator[Problem]:
    first: dict[Path, str] = {}
    for name, folder in folders.items():
        if (other := first.setdefault(folder, name)) != name:
            what = f"its folder would be {folder}, which is that of runs.{other}"
            yield Problem(f"runs.{name}: name", what, "give it another: overrides: {name: ...}")


def _ordered(runs: Mapping[str, PipelineRun]) -> tuple[list[str], list[str]]:
    """Returns the runs, each after those that it needs and otherwise as they are written, and a circle of them if there
    is one."""
    order: list[str] = []
    circle: list[str] = []

    def visit(name: str, path: tuple[str, ...]) -> None:
        if name in path:
            circle.extend([*path[path.index(name) :], name] if not circle else [])
        elif name not in order:
            for parent in runs[name].parents:
                visit(parent, (*path, name))
            order.extend([name] if name not in order else [])

    for name in runs:
        visit(name, ())
    return order, circle
