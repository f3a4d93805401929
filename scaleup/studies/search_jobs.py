"""A search goes in whose trials follow from its file alone; a job of them comes out: a Slurm array, or a Kubernetes job
each. `scaleup search` takes up what they left, and shows what they came to."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from scaleup.config.load import Raw
from scaleup.errors import Problem, ScaleupError
from scaleup.launcher.jobs import job_folder, on_target, refuse_unlike, target_of
from scaleup.launcher.render.job import Job
from scaleup.studies.sampling import new_trials
from scaleup.studies.search import IN_ANY_ORDER, Search, read_search
from scaleup.studies.search_check import check_search
from scaleup.studies.search_run import read_record
from scaleup.studies.trials import is_refused


def plan_search(
    file: Path, raw: Raw, overrides: Sequence[str], target: str | None, max_parallel: int | None, folder: Path | None
) -> tuple[Job, str]:
    """Returns the job of the trials that are left of a search, and its target.

    Raises ScaleupError with every mistake of the search, and where nothing is left."""
    search = read_search(file, raw, overrides)
    config = search.load({}).config
    target = target or ("slurm" if config is None else target_of(config))
    search.problems.extend(_problems(search, target, max_parallel))
    check_search(search, partial(on_target, target=target, is_sweep=True))
    record = read_record(search)
    trials = [*record.trials, *new_trials(search, record, search.num_trials)]
    left = [trial for trial in trials if trial.state == "running" and not is_refused(search, trial)]
    loaded = [on_target(search.load(trial.params, trial.number), target, is_sweep=True)[0] for trial in left]
    configs = tuple(each.config for each in loaded if each.config is not None)
    if not configs:
        raise ScaleupError.of("study", "all its trials have ended", "scaleup search shows what they came to")
    job = Job(search.config.study, job_folder(configs[0], search.config.study, folder), configs, True, max_parallel)
    refuse_unlike(job, "space")
    return job, target


def _problems(search: Search, target: str, max_parallel: int | None) -> list[Problem]:
    problems = []
    if search.config.method not in IN_ANY_ORDER:
        what = f"{search.config.method} chooses by what other trials came to, and jobs do not wait for one another"
        problems.append(Problem("method", what, "use grid or random, or scaleup search in one job"))
    if target == "torchrun":
        problems.append(Problem("--target", "torchrun has no scheduler", "use slurm or kubernetes, or scaleup search"))
    if max_parallel and target != "slurm":
        problems.append(Problem("--max-parallel", "is for Slurm", "leave it out"))
    return problems
