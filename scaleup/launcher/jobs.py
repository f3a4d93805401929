"""`scaleup render` and `scaleup submit`: config -> a job's files -> a scheduler."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from scaleup.config.cluster import ClusterConfig
from scaleup.config.load import Loaded, load_leniently
from scaleup.config.schema import RunConfig
from scaleup.errors import Problem, ScaleupError
from scaleup.launcher.job_folder import named_folder, next_folder, write_job
from scaleup.launcher.render.job import Files, Job
from scaleup.launcher.render.kubernetes import kubernetes_files
from scaleup.launcher.render.shell import words
from scaleup.launcher.render.slurm import SCRIPT, slurm_files
from scaleup.launcher.render.sweep import sweep_points
from scaleup.launcher.render.torchrun import torchrun_files
from scaleup.plan.cluster import cluster_machine, cluster_problems, with_reward_device
from scaleup.plan.cluster_targets import kubernetes_problems, slurm_problems, torchrun_problems
from scaleup.plan.resolve import resolve

Rule = Callable[[RunConfig, ClusterConfig, bool], Iterator[Problem]]


RENDER: dict[str, Callable[[Job], Files]] = {
    "slurm": slurm_files,
    "kubernetes": kubernetes_files,
    "torchrun": torchrun_files,
}
RULES: dict[str, Rule] = {
    "slurm": slurm_problems,
    "kubernetes": kubernetes_problems,
    "torchrun": torchrun_problems,
}
SUBMIT = {"slurm": ["sbatch", "--parsable"], "kubernetes": ["kubectl", "create", "--output=name", "--filename"]}
"""A scheduler's own command, to which the file is added. It prints what the job is called. Not `kubectl apply`, which
changes nothing of a job that has ended, and says that all is well."""


@dataclass(frozen=True)
class Request:
    """What the command line asks for."""

    config: Path
    overrides: Sequence[str] = ()
    target: str | None = None
    """None: what the config's cluster section is for."""
    sweeps: Sequence[str] = ()
    max_parallel: int | None = None


def render(request: Request, output: Path | None) -> None:
    """Write a job's files to a folder, or print them as they would be. Raises ScaleupError for the user's mistakes."""
    folder = None if output is None else named_folder(output)
    job, target = plan_job(request, folder)
    files = RENDER[target](job)
    if folder is None:
        _print_files(job.folder, files)
        return
    write_job(folder, files)
    for name in files:
        print(folder / name)


def submit(request: Request, dry_run: bool) -> None:
    """Hand a job to its scheduler and print its id; `dry_run` prints what would be done instead.

    Raises ScaleupError for the user's mistakes, and for what the scheduler says to them."""
    job, target = plan_job(request, None)
    if target not in SUBMIT:
        raise ScaleupError.of("--target", f"{target} has no scheduler to submit to", "use slurm or kubernetes")
    files = RENDER[target](job)
    submitted = [job.folder / name for name in files if target != "slurm" or name == SCRIPT]
    commands = [[*SUBMIT[target], str(file)] for file in submitted]
    if dry_run:
        _print_files(job.folder, files)
        print("\n".join(words(command) for command in commands))
        return
    if shutil.which(commands[0][0]) is None:
        raise ScaleupError.of(commands[0][0], "is not on this machine", "submit where it is, or look with --dry-run")
    write_job(job.folder, files)
    try:
        for command in commands:
            print(_answer(command, job.cluster))
    except ScaleupError:
        shutil.rmtree(job.folder, ignore_errors=True)
        raise


def plan_job(request: Request, folder: Path | None) -> tuple[Job, str]:
    """The job, planned for the cluster's nodes, every point of a sweep by itself; and its target.

    Raises ScaleupError with every mistake of the request, the config and every point."""
    problems: list[Problem] = []
    points = sweep_points(request.sweeps, problems)
    base = load_leniently(request.config, request.overrides)
    if base.config is None:
        raise ScaleupError([*problems, *base.problems])
    target = request.target or _target_of(base.config)
    if request.sweeps and target == "torchrun":
        problems.append(Problem("--sweep", "needs a scheduler", "use --target slurm or kubernetes"))
    if request.max_parallel and not (request.sweeps and target == "slurm"):
        problems.append(Problem("--max-parallel", "is for a sweep on Slurm", "leave it out"))
    if problems:
        points, base.problems = [], [*problems, *base.problems]
    name = base.config.name
    loaded = {"": base}
    if points:
        named = [[*point, f"name={name}-{number}"] for number, point in enumerate(points)]
        loads = [load_leniently(request.config, [*request.overrides, *point]) for point in named]
        loaded = {f"point {number} ({', '.join(points[number])})": each for number, each in enumerate(loads)}
    configs = _resolved(loaded, target, is_sweep=bool(points))
    place = folder or next_folder(configs[0], name)
    if not str(place).isprintable() or "\\" in str(place):
        what = f"{str(place)!r} cannot stand in a job's script"
        raise ScaleupError.of(
            "--output" if folder else "runs_dir", what, "use a folder without control characters and \\"
        )
    each_alone = [Job(name, place, (config,)) for config in configs]
    if len({(job.num_nodes, job.node, job.reward_node) for job in each_alone}) > 1:
        what = "its points need unlike nodes, and are one job, which asks for one kind"
        raise ScaleupError.of("--sweep", what, "submit those that are alike together")
    return Job(name, place, tuple(configs), bool(points), request.max_parallel), target


def _target_of(config: RunConfig) -> str:
    cluster = config.cluster
    return "kubernetes" if cluster is not None and cluster.kubernetes and not cluster.slurm else "slurm"


def _resolved(loaded: dict[str, Loaded], target: str, is_sweep: bool) -> list[RunConfig]:
    """The configs of all points. What is wrong with all of them is said once."""
    configs, found = [], {}
    for point, each in loaded.items():
        try:
            configs.append(_resolve(each, target, is_sweep))
        except ScaleupError as error:
            found[point] = error.problems
    if not found:
        return configs
    everywhere = [
        problem for problem in next(iter(found.values())) if all(problem in found.get(point, ()) for point in loaded)
    ]
    own = [
        Problem(f"{point}: {problem.where}", problem.what, problem.remedy)
        for point, problems in found.items()
        for problem in problems
        if problem not in everywhere
    ]
    raise ScaleupError([*everywhere, *own])


def _resolve(loaded: Loaded, target: str, is_sweep: bool) -> RunConfig:
    config = loaded.config
    if config is None:
        raise ScaleupError(loaded.problems)
    cluster, known = config.cluster, {problem.where for problem in loaded.problems}
    if cluster is None and target != "torchrun" and "cluster" not in known:
        missing = Problem("cluster", "is missing", "say what to ask the scheduler for: docs/config.md, ClusterConfig")
        loaded = Loaded(config, [*loaded.problems, missing])
    if cluster is None:
        return resolve(loaded, resume=True, peaks=False)[0]
    config = with_reward_device(config, cluster)
    problems = [*cluster_problems(config, cluster), *RULES[target](config, cluster, is_sweep)]
    problems = [problem for problem in problems if problem.where not in known]
    checked = Loaded(config, [*loaded.problems, *problems])
    return resolve(checked, cluster_machine(config, cluster), resume=True, peaks=False)[0]


def _print_files(folder: Path, files: Files) -> None:
    for name, text in files.items():
        print(f"==> {folder / name}\n{text}")


def _answer(command: list[str], cluster: ClusterConfig) -> str:
    """What the scheduler calls the job. Slurm adds the cluster's name where there are several."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        said = " ".join(done.stderr.split()) or f"ended with exit code {done.returncode}"
        remedy = "mend the cluster section, or ask who runs the cluster"
        if command[0] == "kubectl":
            _take_back(done.stdout.split(), cluster)
            if "AlreadyExists" in said:
                remedy = "kubectl delete --filename the job.yaml that it was made from, or choose another name"
        raise ScaleupError.of(command[0], said, remedy)
    return done.stdout.strip().partition(";")[0]


def _take_back(created: list[str], cluster: ClusterConfig) -> None:
    """What `kubectl create` had made of a job before it failed, which would be in the way of the next try."""
    namespace = cluster.kubernetes.namespace if cluster.kubernetes else None
    where = [f"--namespace={namespace}"] if namespace else []
    if created:
        subprocess.run(["kubectl", "delete", *where, *created], capture_output=True, check=False)
