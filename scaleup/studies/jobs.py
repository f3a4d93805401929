"""A pipeline goes in; a Slurm job for each run that there is something to do for comes out, with nodes of its own: it
begins once the jobs that make its inputs have ended well."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from scaleup.artifacts.files import write_text
from scaleup.config.load import Loaded, Raw
from scaleup.errors import Problem, ScaleupError
from scaleup.launcher.jobs import (
    SUBMIT,
    hand_over,
    job_folder,
    named_folder,
    on_target,
    print_submission,
    refuse_missing,
    target_of,
    write_job,
)
from scaleup.launcher.render.job import Job, words
from scaleup.launcher.render.slurm import SCRIPT, slurm_files
from scaleup.plan.machine import Machine
from scaleup.studies.check import check
from scaleup.studies.pipeline import Pipeline, of_run, read_pipeline
from scaleup.studies.start import set_aside
from scaleup.studies.steps import Step, steps_of

SUBMIT_ALL = "submit.sh"


@dataclass(frozen=True)
class PlannedJob:
    """Stands for the job of one run."""

    job: Job
    step: Step
    after: tuple[str, ...]
    """Names the runs whose jobs must have ended well before it begins."""


def submit_pipeline(
    file: Path, raw: Raw, overrides: Sequence[str], target: str | None, dry_run: bool, console: Console
) -> None:
    """Hand a job for each run to Slurm and print the run with the job's id; `dry_run` prints what would be done. What
    holds another run is renamed first, as when the pipeline runs here.

    Raises ScaleupError with every mistake of every run, before any is submitted, and for what Slurm refuses."""
    pipeline, jobs = plan_jobs(file, raw, overrides, target, lambda name: None)
    if dry_run:
        for each in jobs.values():
            print_submission(each.job, "slurm", [f"<{name}>" for name in each.after])
        return
    if jobs:
        refuse_missing(SUBMIT["slurm"][0])
    ids: dict[str, str] = {}
    for name, each in jobs.items():
        if each.step.action == "again":
            console.print(f"{name}: {each.step.why}: {set_aside(pipeline.runs[name].folder, console)}", soft_wrap=True)
        try:
            (ids[name],) = hand_over(each.job, "slurm", [ids[parent] for parent in each.after])
        except ScaleupError as error:
            before = f"submitted before: {', '.join(map(' '.join, ids.items()))}" if ids else ""
            raise ScaleupError([*of_run(name, error.problems), *_told(before)]) from error
        print(f"{name} {ids[name]}", flush=True)


def render_pipeline(file: Path, raw: Raw, overrides: Sequence[str], target: str | None, output: Path | None) -> None:
    """Write each job's files to a folder of its own in `output`, with a script that submits all, or print them.

    Raises ScaleupError as `submit_pipeline` does, and for a run whose folder holds another one."""
    folder = None if output is None else named_folder(output)
    _, jobs = plan_jobs(file, raw, overrides, target, lambda name: folder and folder / name)
    remedy = "move it away, or scaleup submit, which renames it"
    again = [
        Problem(f"runs.{name}", each.step.why, remedy) for name, each in jobs.items() if each.step.action == "again"
    ]
    if again:
        raise ScaleupError(again)
    if folder is None:
        for each in jobs.values():
            print_submission(each.job, "slurm", [f"<{name}>" for name in each.after])
        return
    if not jobs:
        return
    for each in jobs.values():
        write_job(each.job.folder, slurm_files(each.job))
        print(each.job.folder / SCRIPT)
    try:
        write_text(folder / SUBMIT_ALL, submit_script(jobs))
    except OSError as error:
        raise ScaleupError.of(str(folder), f"cannot be written: {error.strerror}", "name another folder") from error
    print(folder / SUBMIT_ALL)


def plan_jobs(
    file: Path, raw: Raw, overrides: Sequence[str], target: str | None, place: Callable[[str], Path | None]
) -> tuple[Pipeline, dict[str, PlannedJob]]:
    """Return the pipeline and, by run, the jobs that there is something to do for, each after those that it needs.

    Raises ScaleupError with every mistake of the pipeline and of every run."""
    pipeline = read_pipeline(file, raw, overrides)
    loaded = [run.loaded for run in pipeline.runs.values()]
    targets = {target or target_of(each.config) for each in loaded if each.config is not None}
    if strangers := sorted(targets - {"slurm"}):
        what = f"{strangers[0]} does not order the jobs of a pipeline"
        pipeline.problems.append(Problem("--target", what, "use slurm, or scaleup run in one job"))
    if pipeline.problems or any(each.problems for each in loaded):
        check(pipeline, list(pipeline.runs), _on_slurm)
    steps = steps_of(pipeline, list(pipeline.runs))
    todo = [name for name, step in steps.items() if not step.is_done]
    for note in check(pipeline, todo, _on_slurm) if todo else ["all runs have finished already; nothing to do"]:
        Console(stderr=True).print(f"note: {note}", soft_wrap=True, markup=False)
    jobs = {}
    for name in todo:
        config = on_target(pipeline.runs[name].loaded, "slurm")[0].config
        assert config is not None, "it was checked"
        job = Job(config.name, job_folder(config, config.name, place(name)), (config,))
        jobs[name] = PlannedJob(job, steps[name], tuple(each for each in pipeline.runs[name].parents if each in todo))
    return pipeline, jobs


def _on_slurm(loaded: Loaded) -> tuple[Loaded, Machine | None]:
    return on_target(loaded, "slurm")


def _told(what: str) -> list[Problem]:
    return [Problem("sbatch", what, "scancel those, or submit again once they have ended")] if what else []


def submit_script(jobs: dict[str, PlannedJob]) -> str:
    """Render the script that submits rendered jobs, from wherever it is called."""
    lines = ["#!/bin/bash", "# Written by `scaleup render`: submits each run after those that it needs.", "set -eu"]
    variables = {name: f"job_{number}" for number, name in enumerate(jobs, 1)}
    for name, each in jobs.items():
        command = words(SUBMIT["slurm"])
        if each.after:
            ids = ":".join(f"${{{variables[parent]}%%;*}}" for parent in each.after)
            command += f' --dependency="afterok:{ids}" --kill-on-invalid-dep=yes'
        lines.append(f"{variables[name]}=$({command} {shlex.quote(str(each.job.folder / SCRIPT))})")
        lines.append(f'echo "{name} ${variables[name]}"')
    return "\n".join(lines) + "\n"
