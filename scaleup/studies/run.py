"""A pipeline goes in; its runs are started, each after those that it needs, and the exit code comes out."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from scaleup.config.load import Raw
from scaleup.config.mistakes import suggestion
from scaleup.errors import Problem
from scaleup.studies.pipeline import Pipeline, read_pipeline
from scaleup.studies.steps import Step, steps_of


@dataclass(frozen=True)
class PipelineOptions:
    """Holds what the command line says of a pipeline."""

    overrides: Sequence[str] = ()
    only: str | None = None
    """Names the one run that is made."""
    first: str | None = None
    """Names the run that is made with all that need it."""
    is_dry: bool = False

    @property
    def words(self) -> list[str]:
        """Returns them as they are written."""
        named = {"--only": self.only, "--from": self.first}
        return [*self.overrides, *(word for name, run in named.items() if run for word in (name, run))]


def run_pipeline(file: Path, raw: Raw, options: PipelineOptions, console: Console) -> int:
    """Checks all runs of a pipeline, then skips, resumes or starts each. Returns the exit code of the one that did not
    finish, or 0.

    Raises ScaleupError with every mistake of every run before any starts."""
    pipeline = read_pipeline(file, raw, options.overrides)
    pipeline.problems.extend(_option_problems(pipeline, options))
    if pipeline.problems or any(run.loaded.problems for run in pipeline.runs.values()):
        _check(pipeline, list(pipeline.runs))
    chosen = _chosen(pipeline, options)
    steps = steps_of(pipeline, chosen)
    todo = [name for name in chosen if not steps[name].is_done]
    notes = _check(pipeline, todo) if todo else []
    _show(console, pipeline, steps, chosen)
    if not todo:
        console.print(f"pipeline {pipeline.name} has finished already; nothing to do", soft_wrap=True)
        return 0
    for note in notes:
        console.print(f"note: {note}", soft_wrap=True)
    if options.is_dry:
        return 0
    code = None
    try:
        code = _start(pipeline, todo, console)
    finally:  # also where a run is refused whose inputs are there by now
        if code != 0:
            command = shlex.join(["scaleup", "run", str(file), *options.words])
            console.print(f"pipeline {pipeline.name} goes on with: {command}", soft_wrap=True)
    return code


# A pipeline that has finished needs nothing of what these two import, which takes longer than all else.


def _start(pipeline: Pipeline, names: Sequence[str], console: Console) -> int:
    if pipeline.num_parallel > 1:
        from scaleup.studies.side_by_side import SideBySide

        return SideBySide(pipeline, names, console).run()
    from scaleup.studies.start import start_all

    return start_all(pipeline, names, console)


def _check(pipeline: Pipeline, names: Sequence[str]) -> list[str]:
    from scaleup.studies.check import check

    return check(pipeline, names)


def _option_problems(pipeline: Pipeline, options: PipelineOptions) -> list[Problem]:
    names = list(pipeline.runs)
    problems = []
    for option, name in (("--only", options.only), ("--from", options.first)):
        if name is not None and name not in names:
            remedy = suggestion(name, names) or f"the runs are {', '.join(names)}"
            problems.append(Problem(option, f"there is no run {name!r} in the pipeline", remedy))
    if options.only is not None and options.first is not None:
        problems.append(Problem("--only", "and --from exclude each other", "leave one out"))
    return problems


def _chosen(pipeline: Pipeline, options: PipelineOptions) -> list[str]:
    if options.only is not None:
        return [options.only]
    return list(pipeline.runs) if options.first is None else pipeline.below(options.first)


def _show(console: Console, pipeline: Pipeline, steps: dict[str, Step], chosen: Sequence[str]) -> None:
    width = max(map(len, pipeline.runs))
    for name, step in steps.items():
        action, why = (step.action, step.why) if name in chosen else ("leave", "not asked for")
        if name not in chosen and not step.is_done:
            why += f", although: {step.why}"
        console.print(f"{name:<{width}}  {action:<6}  {why}", soft_wrap=True)
