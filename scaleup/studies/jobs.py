"""A pipeline goes in; a job for each run that there is something to do for comes out, with nodes of its own. On Slurm
all are handed over at once, and each begins when those that make its inputs have ended well. Kubernetes knows no order
of jobs: a script hands over one after another, and waits for each."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from rich.console import Console

from scaleup.artifacts.files import write_text
from scaleup.config.load import Loaded, Raw
from scaleup.errors import Problem, ScaleupError
from scaleup.launcher.jobs import (
    RENDER,
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
from scaleup.launcher.render.slurm import SCRIPT
from scaleup.plan.machine import Machine
from scaleup.studies.check import check
from scaleup.studies.pipeline import Pipeline, of_run, read_pipeline
from scaleup.studies.start import set_aside
from scaleup.studies.steps import Step, steps_of

SUBMIT_ALL = "submit.sh"
JOB_FILE = "job.yaml"


@dataclass(frozen=True)
class PlannedJob:
    """Stands for the job of one run."""

    job: Job
    step: Step
    after: tuple[str, ...]
    """Names the runs whose jobs must have ended well before it begins."""

    def file(self, target: str) -> Path:
        """Returns the file that the scheduler is given."""
        return self.job.folder / (SCRIPT if target == "slurm" else JOB_FILE)


@dataclass(frozen=True)
class PlannedJobs:
    """Holds the jobs of a pipeline, by run, each after those that it needs."""

    pipeline: Pipeline
    target: str
    jobs: dict[str, PlannedJob]

    def show(self) -> None:
        """Prints what would be written and called."""
        for each in self.jobs.values():
            after = each.after if self.target == "slurm" else ()
            print_submission(each.job, self.target, [f"<{name}>" for name in after])

    def write(self, script: Path) -> list[Path]:
        """Writes the files of all jobs and the script that submits them. Returns the files to look at.

        Raises ScaleupError where they cannot be written."""
        for each in self.jobs.values():
            write_job(each.job.folder, RENDER[self.target](each.job))
        try:
            write_text(script, SCRIPTS[self.target](self.jobs))
        except OSError as error:
            what = f"cannot be written: {error.strerror}"
            raise ScaleupError.of(str(script.parent), what, "name another folder") from error
        return [*(each.file(self.target) for each in self.jobs.values()), script]


def submit_pipeline(
    file: Path, raw: Raw, overrides: Sequence[str], target: str | None, dry_run: bool, console: Console
) -> int:
    """Hand a job for each run to its scheduler and print the run with what the job is called; `dry_run` prints what
    would be done. What holds another run is renamed first, as when the pipeline runs here. Return the exit code: on
    Kubernetes, that of waiting for the jobs.

    Raises ScaleupError with every mistake of every run, before any is submitted, and for what Slurm refuses."""
    planned = plan_jobs(file, raw, overrides, target, lambda name: None)
    if dry_run:
        planned.show()
    if dry_run or not planned.jobs:
        return 0
    refuse_missing(SUBMIT[planned.target][0])
    if planned.target == "slurm":
        _submit_to_slurm(planned, console)
        return 0
    for name in planned.jobs:
        _make_room(planned, name, console)
    script = next(iter(planned.jobs.values())).job.folder / SUBMIT_ALL
    planned.write(script)
    return subprocess.run(["bash", str(script)], check=False).returncode


def _submit_to_slurm(planned: PlannedJobs, console: Console) -> None:
    ids: dict[str, str] = {}
    for name, each in planned.jobs.items():
        _make_room(planned, name, console)
        try:
            (ids[name],) = hand_over(each.job, "slurm", [ids[parent] for parent in each.after])
        except ScaleupError as error:
            before = f"submitted before: {', '.join(map(' '.join, ids.items()))}" if ids else ""
            raise ScaleupError([*of_run(name, error.problems), *_told(before)]) from error
        print(f"{name} {ids[name]}", flush=True)


def _make_room(planned: PlannedJobs, name: str, console: Console) -> None:
    step = planned.jobs[name].step
    if step.action == "again":
        aside = set_aside(planned.pipeline.runs[name].folder, console)
        console.print(f"{name}: {step.why}: {aside}", soft_wrap=True)


def render_pipeline(file: Path, raw: Raw, overrides: Sequence[str], target: str | None, output: Path | None) -> None:
    """Write each job's files to a folder of its own in `output`, with a script that submits all, or print them.

    Raises ScaleupError as `submit_pipeline` does, and for a run whose folder holds another one."""
    folder = None if output is None else named_folder(output)
    planned = plan_jobs(file, raw, overrides, target, lambda name: folder and folder / name)
    remedy = "move it away, or scaleup submit, which renames it"
    again = [
        Problem(f"runs.{name}", each.step.why, remedy)
        for name, each in planned.jobs.items()
        if each.step.action == "again"
    ]
    if again:
        raise ScaleupError(again)
    if folder is None:
        planned.show()
    elif planned.jobs:
        print("\n".join(map(str, planned.write(folder / SUBMIT_ALL))))


def plan_jobs(
    file: Path, raw: Raw, overrides: Sequence[str], target: str | None, place: Callable[[str], Path | None]
) -> PlannedJobs:
    """Return the jobs of the runs of a pipeline that there is something to do for; `place` gives the folder of each.

    Raises ScaleupError with every mistake of the pipeline and of every run."""
    pipeline = read_pipeline(file, raw, overrides)
    loaded = [run.loaded for run in pipeline.runs.values()]
    targets = sorted({target or target_of(each.config) for each in loaded if each.config is not None})
    if strangers := [each for each in targets if each not in SCRIPTS]:
        what = f"{strangers[0]} does not order the jobs of a pipeline"
        pipeline.problems.append(Problem("--target", what, "use slurm or kubernetes, or scaleup run in one job"))
    elif len(targets) > 1:
        what = f"its runs are for {' and '.join(targets)}"
        pipeline.problems.append(Problem("--target", what, "name one, or give all runs a cluster section of one kind"))
    on_it = partial(_on_its_target, target)
    if pipeline.problems or any(each.problems for each in loaded):
        check(pipeline, list(pipeline.runs), on_it)
    steps = steps_of(pipeline, list(pipeline.runs))
    todo = [name for name, step in steps.items() if not step.is_done]
    for note in check(pipeline, todo, on_it) if todo else ["all runs have finished already; nothing to do"]:
        Console(stderr=True).print(f"note: {note}", soft_wrap=True, markup=False)
    jobs = {}
    for name in todo:
        config = on_it(pipeline.runs[name].loaded)[0].config
        assert config is not None, "it was checked"
        job = Job(config.name, job_folder(config, config.name, place(name)), (config,))
        jobs[name] = PlannedJob(job, steps[name], tuple(each for each in pipeline.runs[name].parents if each in todo))
    return PlannedJobs(pipeline, targets[0], jobs)


def _on_its_target(target: str | None, loaded: Loaded) -> tuple[Loaded, Machine | None]:
    return on_target(loaded, target or ("slurm" if loaded.config is None else target_of(loaded.config)))


def _told(what: str) -> list[Problem]:
    return [Problem("sbatch", what, "scancel those, or submit again once they have ended")] if what else []


def slurm_script(jobs: dict[str, PlannedJob]) -> str:
    """Render the script that submits rendered jobs, from wherever it is called."""
    lines = ["#!/bin/bash", "# Written by `scaleup render`: submits each run after those that it needs.", "set -eu"]
    variables = {name: f"job_{number}" for number, name in enumerate(jobs, 1)}
    for name, each in jobs.items():
        command = words(SUBMIT["slurm"])
        if each.after:
            ids = ":".join(f"${{{variables[parent]}%%;*}}" for parent in each.after)
            command += f' --dependency="afterok:{ids}" --kill-on-invalid-dep=yes'
        lines.append(f"{variables[name]}=$({command} {words([each.file('slurm')])})")
        lines.append(f'echo "{name} ${variables[name]}"')
    return "\n".join(lines) + "\n"


def kubernetes_script(jobs: dict[str, PlannedJob], seconds: float = 10) -> str:
    """Render the script that creates rendered jobs, each once the one before has ended well. It looks how a job is
    every so many seconds."""
    lines = [KUBERNETES.replace("CREATE", words(SUBMIT["kubernetes"])).replace("SECONDS", str(seconds))]
    for name, each in jobs.items():
        cluster = each.job.cluster.kubernetes
        where = [f"--namespace={cluster.namespace}"] if cluster is not None and cluster.namespace else []
        lines.append(f"run {words([name, each.file('kubernetes'), *where])}")
    return "\n".join(lines) + "\n"


KUBERNETES = r"""#!/bin/bash
# Written by `scaleup render`: creates each run's job once the one before has ended well.
set -eu
run() { # NAME FILE [--namespace=NAME]
  local name=$1 file=$2 made job ended silent=0
  shift 2
  if ! made=$(CREATE "$file"); then
    echo "$name: if a job of that name has ended: kubectl delete --filename '$file', and submit again" >&2
    exit 1
  fi
  job=${made##*$'\n'} # the last one: what it needs is created before it
  echo "$name $job"
  while :; do
    if ended=$(kubectl get "$@" --output='jsonpath={.status.conditions[?(@.status=="True")].type}' "$job"); then
      silent=0
    elif [ $((silent += 1)) -ge 30 ]; then # else a network that comes back would have ended all
      exit 1
    fi
    case " $ended " in
      *" Failed "*)
        echo "$name: $job has failed: kubectl logs $* $job" >&2
        exit 1
        ;;
      *" Complete "* | *" Completed "*) return ;;
    esac
    sleep SECONDS
  done
}
"""
SCRIPTS: dict[str, Callable[[dict[str, PlannedJob]], str]] = {"slurm": slurm_script, "kubernetes": kubernetes_script}
"""Maps each scheduler that a pipeline can be for -> what renders the script that submits it."""
