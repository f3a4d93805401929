"""This module renders and submits jobs: a config goes in; a job's files, or what a scheduler calls the job, come
out."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from scaleup.artifacts.files import write_text
from scaleup.config.cluster import ClusterConfig
from scaleup.config.load import Loaded, load_leniently
from scaleup.config.run import RunConfig
from scaleup.errors import Problem, ScaleupError
from scaleup.launcher.render.job import Files, Job, words
from scaleup.launcher.render.kubernetes import kubernetes_files
from scaleup.launcher.render.slurm import SCRIPT, slurm_files
from scaleup.launcher.render.sweep import sweep_points
from scaleup.launcher.render.torchrun import torchrun_files
from scaleup.plan.cluster import cluster_machine, cluster_problems, with_reward_device
from scaleup.plan.cluster_targets import kubernetes_problems, slurm_problems, torchrun_problems
from scaleup.plan.extras import DataPlaneMissing
from scaleup.plan.machine import Machine
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
"""Maps each scheduler -> its own command, to which the file is added. It prints what the job is called. It is not
`kubectl apply`, which changes nothing of a job that has ended, and says that all is well."""


@dataclass(frozen=True)
class Request:
    """Holds what the command line requests."""

    config: Path
    overrides: Sequence[str] = ()
    target: str | None = None
    """Names the target; None: what the config's cluster section is for."""
    sweeps: Sequence[str] = ()
    max_parallel: int | None = None


def render(request: Request, output: Path | None) -> None:
    """Write a job's files to a folder, or print them as they would be. Raises ScaleupError for the user's mistakes."""
    folder = None if output is None else named_folder(output)
    render_planned(*plan_job(request, folder), folder)


def render_planned(job: Job, target: str, folder: Path | None) -> None:
    """Write a planned job's files to its folder, or print them where it has none yet."""
    files = RENDER[target](job)
    if folder is None:
        print_files(job.folder, files)
        return
    write_job(folder, files)
    for name in files:
        print(folder / name)


def submit(request: Request, dry_run: bool) -> None:
    """Hand a job to its scheduler and print its id; `dry_run` prints what would be done instead.

    Raises ScaleupError for the user's mistakes, and for what the scheduler says to them."""
    submit_planned(*plan_job(request, None), dry_run)


def submit_planned(job: Job, target: str, dry_run: bool) -> None:
    """Hand a planned job to its scheduler as `submit` does."""
    if target not in SUBMIT:
        raise ScaleupError.of("--target", f"{target} has no scheduler to submit to", "use slurm or kubernetes")
    if dry_run:
        print_submission(job, target)
        return
    for name in hand_over(job, target):
        print(name)


def commands_of(job: Job, target: str, files: Files, after: Sequence[str] = ()) -> list[list[str]]:
    """Return the commands that hand a job's files to its scheduler, to begin once the jobs `after` have ended well
    (Slurm)."""
    submitted = [job.folder / name for name in files if target != "slurm" or name == SCRIPT]
    depends = [f"--dependency=afterok:{':'.join(after)}", "--kill-on-invalid-dep=yes"] if after else []
    return [[*SUBMIT[target], *depends, str(file)] for file in submitted]


def print_submission(job: Job, target: str, after: Sequence[str] = ()) -> None:
    """Print what `hand_over` would write and call."""
    files = RENDER[target](job)
    print_files(job.folder, files)
    print("\n".join(words(command) for command in commands_of(job, target, files, after)))


def hand_over(job: Job, target: str, after: Sequence[str] = ()) -> Iterator[str]:
    """Write a job's files and hand them to its scheduler, one after another. Yield what that calls each.

    Raises ScaleupError for what the scheduler says to them; then the files are gone."""
    files = RENDER[target](job)
    commands = commands_of(job, target, files, after)
    refuse_missing(commands[0][0])
    write_job(job.folder, files)
    try:
        for command in commands:
            yield _submit(command, job.cluster)
    except ScaleupError:
        shutil.rmtree(job.folder, ignore_errors=True)
        raise


def refuse_missing(command: str) -> None:
    """Raise ScaleupError if a scheduler's command is not on this machine."""
    if shutil.which(command) is None:
        raise ScaleupError.of(command, "is not on this machine", "submit where it is, or look with --dry-run")


def plan_job(request: Request, folder: Path | None) -> tuple[Job, str]:
    """Return the job, planned for the cluster's nodes, every point of a sweep by itself; and its target.

    Raises ScaleupError with every mistake of the request, the config and every point."""
    problems: list[Problem] = []
    points = sweep_points(request.sweeps, problems)
    base = load_leniently(request.config, request.overrides)
    if base.config is None:
        raise ScaleupError([*problems, *base.problems])
    target = request.target or target_of(base.config)
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
    place = job_folder(configs[0], name, folder)
    job = Job(name, place, tuple(configs), bool(points), request.max_parallel)
    refuse_unlike(job, "--sweep")
    return job, target


def refuse_unlike(job: Job, where: str) -> None:
    """Raise ScaleupError if a job's runs need unlike nodes; `where` says what makes them differ."""
    each_alone = [Job(job.name, job.folder, (config,)) for config in job.configs]
    if len({(each.num_nodes, each.node, each.reward_node) for each in each_alone}) > 1:
        what = "its points need unlike nodes, and are one job, which asks for one kind"
        raise ScaleupError.of(where, what, "submit those that are alike together")


def job_folder(config: RunConfig, name: str, folder: Path | None = None) -> Path:
    """Return the named folder, or `<runs_dir>/<name>.jobs/<number>`, for this submission alone: it is read when the job
    begins. It is beside the run's own folder, which must be empty before the run begins.

    Raises ScaleupError for a path that cannot stand in a script."""
    parent = Path(config.runs_dir) / f"{name}.jobs"
    taken = [int(each.name) for each in parent.glob("*") if each.name.isdecimal()]
    place = folder or parent / str(max(taken, default=0) + 1)
    if not str(place).isprintable() or "\\" in str(place):
        what = f"{str(place)!r} cannot stand in a job's script"
        raise ScaleupError.of(
            "--output" if folder else "runs_dir", what, "use a folder without control characters and \\"
        )
    return place


def named_folder(path: Path) -> Path:
    """Return the folder that the user names, as an absolute path. Raises ScaleupError if it is not empty: a job may yet
    read what is in it."""
    folder = path.expanduser().absolute()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        what = "is not empty" if folder.is_dir() else "is no folder"
        raise ScaleupError.of(f"--output {path}", what, "name another: a job that waits may read what is there")
    return folder


def write_job(folder: Path, files: Files) -> None:
    """Write a job's files. Raises ScaleupError if its folder cannot be written."""
    try:
        (folder / "logs").mkdir(parents=True)
        for name, text in files.items():
            write_text(folder / name, text)
    except OSError as error:
        raise ScaleupError.of(str(folder), f"cannot be written: {error.strerror}", "name another folder") from None


def target_of(config: RunConfig) -> str:
    """Return the target that a config's cluster section is for."""
    cluster = config.cluster
    return "kubernetes" if cluster is not None and cluster.kubernetes and not cluster.slurm else "slurm"


def _resolved(loaded: dict[str, Loaded], target: str, is_sweep: bool) -> list[RunConfig]:
    """Resolve the configs of all points. Raises ScaleupError, with what is wrong with all of them once."""
    configs: list[RunConfig] = []
    refused: dict[str, list[Problem]] = {}
    for point, each in loaded.items():
        try:
            configs.append(_resolve(each, target, is_sweep))
        except ScaleupError as error:
            refused[point] = error.problems
    if not refused:
        return configs
    everywhere = [
        problem
        for problem in next(iter(refused.values()))
        if all(problem in refused.get(point, ()) for point in loaded)
    ]
    own = [
        Problem(f"{point}: {problem.where}", problem.what, problem.remedy)
        for point, problems in refused.items()
        for problem in problems
        if problem not in everywhere
    ]
    raise ScaleupError([*everywhere, *own])


def _resolve(loaded: Loaded, target: str, is_sweep: bool) -> RunConfig:
    return _checked(*on_target(loaded, target, is_sweep))


def on_target(loaded: Loaded, target: str, is_sweep: bool = False) -> tuple[Loaded, Machine | None]:
    """Return a config as it will be run there, with what the target refuses of it, and the machine of a node that it
    asks for; None where it asks for none.

    Raises ScaleupError for a config that does not load."""
    config = loaded.config
    if config is None:
        raise ScaleupError(loaded.problems)
    cluster, known = config.cluster, {problem.where for problem in loaded.problems}
    if cluster is None and target != "torchrun" and "cluster" not in known:
        missing = Problem("cluster", "is missing", "say what to ask the scheduler for: docs/config.md, ClusterConfig")
        loaded = Loaded(config, [*loaded.problems, missing])
    if cluster is None:
        return loaded, None
    config = with_reward_device(config, cluster)
    problems = [*cluster_problems(config, cluster), *RULES[target](config, cluster, is_sweep)]
    problems = [problem for problem in problems if problem.where not in known]
    return Loaded(config, [*loaded.problems, *problems]), cluster_machine(config, cluster)


def _checked(loaded: Loaded, machine: Machine | None) -> RunConfig:
    """Returns the config once it is planned. On a login node without torch what needs the model's own files is left to
    the job's first node, and stderr says so: a job's files hold nothing of it."""
    try:
        return resolve(loaded, machine, resume=True, peaks=False)[0]
    except DataPlaneMissing as missing:
        assert loaded.config is not None
        print(f"note: the model was not looked at: {missing}", file=sys.stderr)
        return loaded.config


def print_files(folder: Path, files: Files) -> None:
    for name, text in files.items():
        print(f"==> {folder / name}\n{text}")


def _submit(command: list[str], cluster: ClusterConfig) -> str:
    """Run a scheduler's command and return what it calls the job. Slurm adds the cluster's name if it has several.

    Raises ScaleupError with the scheduler's own message."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        message = " ".join(done.stderr.split()) or f"ended with exit code {done.returncode}"
        remedy = "mend the cluster section, or ask who runs the cluster"
        if command[0] == "kubectl":
            _take_back(done.stdout.split(), cluster)
            if "AlreadyExists" in message:
                remedy = "kubectl delete --filename the job.yaml that it was made from, or choose another name"
        raise ScaleupError.of(command[0], message, remedy)
    return done.stdout.strip().partition(";")[0]


def _take_back(created: list[str], cluster: ClusterConfig) -> None:
    """Delete what `kubectl create` made of a job before it failed: it would be in the way of the next try."""
    namespace = cluster.kubernetes.namespace if cluster.kubernetes else None
    where = [f"--namespace={namespace}"] if namespace else []
    if created:
        subprocess.run(["kubectl", "delete", *where, *created], capture_output=True, check=False)
