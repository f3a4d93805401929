"""This module holds the commands. They have no logic: each reads its arguments, calls one function and gives its exit
code."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.console import Console

from scaleup import __version__
from scaleup.config.load import NO_TEXT, UTF_8, check_working_folder, load_leniently
from scaleup.config.stages import STAGES, json_schema
from scaleup.errors import Problem, ScaleupError
from scaleup.streams import steady_streams, unwritten

if TYPE_CHECKING:
    from scaleup.plan.machine import Machine

LONGEST = 200
"""Is the number of letters of a text that is quoted in a refusal."""
LEAST_WIDTH = 40
"""Is the width in columns below which tables have no meaning, whatever COLUMNS says."""

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False)

RUNS = ("run", "evaluate", "generate", "export")
"""Are the commands that run something. What they print stands in the run folder too, and their exit code is the run's,
whatever became of what they printed."""

TRAIN, RESULTS, CLUSTER, MACHINE = "Train", "Results", "Cluster", "Machine"
"""Names the panels of `scaleup --help`."""

ConfigFile = Annotated[Path, typer.Argument(help="The run's YAML file.", show_default=False)]
Target = Annotated[Path, typer.Argument(help="A finished run's folder, or a config file.", show_default=False)]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Dotted keys, e.g. train.max_steps=10.")
]

ClusterKind = Annotated[
    Literal["slurm", "kubernetes", "torchrun"] | None,
    typer.Option("--target", help="Default: what the config's cluster section is for."),
]
Sweep = Annotated[
    list[str] | None,
    typer.Option(metavar="KEY=[V1,V2,...]", help="One run for each value; if repeated, for each combination."),
]
MaxParallel = Annotated[int | None, typer.Option(min=1, help="Runs of a sweep at the same time (Slurm).")]


def _console() -> Console:
    """Returns what tables and progress are printed on. Users' words hold brackets and colons, and none is markup."""
    console = Console(markup=False, emoji=False, highlight=False)
    console.width = max(LEAST_WIDTH, console.width)
    return console


def _print_version(is_given: bool) -> None:
    if is_given:
        print(f"scaleup {__version__}")
        raise typer.Exit


@app.callback()
def scaleup(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Fine-tune, align and compress language models: one YAML describes one run."""
    check_working_folder()


@app.command(rich_help_panel=TRAIN)
def init(
    stage: Annotated[str, typer.Argument(help=f"One of {', '.join(STAGES)}.", show_default=False)],
    file: Annotated[Path | None, typer.Argument(help="Default: STAGE.yaml.", show_default=False)] = None,
) -> None:
    """Write a commented config to start from."""
    from scaleup.config.starters import write_starter

    written = write_starter(stage, file)
    print(f"{written}: edit the lines marked <-, then scaleup plan {written}")


@app.command(rich_help_panel=TRAIN)
def run(
    config: ConfigFile,
    overrides: Overrides = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue from the newest checkpoint, if there is one.")
    ] = False,
    accept_changed_data: Annotated[
        bool,
        typer.Option(
            "--accept-changed-data",
            help="With --resume: go on with rows, models, reward functions or a chat template that have changed.",
        ),
    ] = False,
    node_rank: Annotated[int, typer.Option(min=0, help="Rank of this node; every node runs this same command.")] = 0,
) -> None:
    """Check, plan and run a config, on this machine or on several."""
    from scaleup.launcher.start import join, start

    loaded = load_leniently(config, overrides or ())
    if node_rank:
        raise typer.Exit(join(loaded, _console(), node_rank))
    raise typer.Exit(start(loaded, _console(), resume, accept_changed_data))


@app.command(rich_help_panel=TRAIN)
def plan(
    config: ConfigFile,
    overrides: Overrides = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the plan as JSON.")] = False,
    gpus: Annotated[int | None, typer.Option(min=1, help="Number of GPUs in all, to plan for another machine.")] = None,
    gpu_memory: Annotated[float | None, typer.Option(min=0.1, help="GiB of memory of each of these GPUs.")] = None,
    nodes: Annotated[int | None, typer.Option(min=1, help="Number of machines.")] = None,
    flops: Annotated[
        float | None, typer.Option(min=0.001, help="TFLOP/s of one device: shows FLOPs and hours too.")
    ] = None,
    utilisation: Annotated[float, typer.Option(min=0.01, max=1, help="Share of --flops that a run reaches.")] = 0.4,
    fit: Annotated[
        bool, typer.Option("--fit", help="Propose the nearest configs that fit the devices, or use them better.")
    ] = False,
) -> None:
    """Show what a config would do, or everything that it is refused for."""
    from scaleup.plan.compute import Rate
    from scaleup.plan.machine import described_machine
    from scaleup.plan.resolve import resolve
    from scaleup.reports.terminal import show_plan

    machine, changes = described_machine(gpus, gpu_memory, nodes, overrides or ())
    if fit:
        _fit(config, overrides or (), changes, machine, as_json)
        return
    loaded = load_leniently(config, changes)
    _, resolved = resolve(loaded, machine, check_run_folder=False, rate=Rate(flops, utilisation))
    if as_json:
        print(json.dumps(resolved.model_dump(mode="json"), indent=2))
    else:
        show_plan(_console(), resolved)


def _fit(config: Path, overrides: Sequence[str], changes: Sequence[str], machine: Machine, as_json: bool) -> None:
    from scaleup.plan.fit import propose
    from scaleup.plan.search import Asked
    from scaleup.reports.fit import show_fit

    with Console(stderr=True).status("planning configs"):
        found = propose(Asked(config, overrides, changes), machine)
    if as_json:
        print(json.dumps(asdict(found), indent=2))
    else:
        show_fit(_console(), config, found)


@app.command(rich_help_panel=TRAIN)
def schema() -> None:
    """Print the JSON schema of config files, for editors."""
    print(json.dumps(json_schema(), indent=2))


@app.command(rich_help_panel=RESULTS)
def evaluate(target: Target, overrides: Overrides = None) -> None:
    """Compare a finished run's model with the one it started from."""
    from scaleup.launcher.start import start
    from scaleup.plan.derive import evaluation_config

    raise typer.Exit(start(evaluation_config(target, overrides or ()), _console()))


@app.command(rich_help_panel=RESULTS)
def compare(
    targets: Annotated[list[str], typer.Argument(help="Evaluations, runs that have one, or a config [KEY=VALUE]...")],
    by: Annotated[list[str] | None, typer.Option(help="A metric by which rows are won; may be repeated.")] = None,
    samples: Annotated[int, typer.Option(min=0, help="Number of rows shown that differ most.")] = 5,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="A folder for the tables as files.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the comparison as JSON.")] = False,
) -> None:
    """Compare models that were evaluated on the same rows."""
    from scaleup.launcher import compare as comparison

    options = comparison.CompareOptions(by or (), samples, output, as_json)
    raise typer.Exit(comparison.compare(targets, options, _console()))


@app.command(rich_help_panel=RESULTS)
def generate(
    target: Target,
    overrides: Overrides = None,
    prompt: Annotated[list[str] | None, typer.Option(help="A prompt; may be repeated.")] = None,
) -> None:
    """Generate text with a finished run's model."""
    from scaleup.launcher.start import start
    from scaleup.plan.derive import generation_config

    raise typer.Exit(start(generation_config(target, overrides or (), prompt or ()), _console()))


@app.command(rich_help_panel=RESULTS)
def chat(
    target: Annotated[str, typer.Argument(help="A finished run's folder, or a model.", show_default=False)],
    overrides: Overrides = None,
) -> None:
    """Talk with a model in this terminal: answers come as they are written."""
    from scaleup.launcher.chat import chat

    raise typer.Exit(chat(target, overrides or ()))


@app.command(rich_help_panel=RESULTS)
def export(target: Target, overrides: Overrides = None) -> None:
    """Write a finished run's model for other programs, adapter merged."""
    from scaleup.launcher.start import start
    from scaleup.plan.derive import export_config

    raise typer.Exit(start(export_config(target, overrides or ()), _console()))


@app.command(rich_help_panel=CLUSTER)
def render(
    config: ConfigFile,
    overrides: Overrides = None,
    target: ClusterKind = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="An empty folder to write to; default: print.")
    ] = None,
    sweep: Sweep = None,
    max_parallel: MaxParallel = None,
) -> None:
    """Write a cluster's job that runs a config: Slurm, Kubernetes."""
    from scaleup.launcher.jobs import Request
    from scaleup.launcher.jobs import render as render_job

    render_job(Request(config, overrides or (), target, sweep or (), max_parallel), output)


@app.command(rich_help_panel=CLUSTER)
def submit(
    config: ConfigFile,
    overrides: Overrides = None,
    target: ClusterKind = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would be submitted.")] = False,
    sweep: Sweep = None,
    max_parallel: MaxParallel = None,
) -> None:
    """Submit a config to a cluster's scheduler and print the job's id."""
    from scaleup.launcher.jobs import Request
    from scaleup.launcher.jobs import submit as submit_job

    submit_job(Request(config, overrides or (), target, sweep or (), max_parallel), dry_run)


@app.command(rich_help_panel=CLUSTER)
def resize(
    run_folder: Annotated[Path, typer.Argument(help="The folder of a run.")],
    group: Annotated[str, typer.Argument(help="A group that serves another, e.g. reward.")],
    num_processes: Annotated[int, typer.Argument(min=1, help="Its new number of processes.")],
) -> None:
    """Resize a running reward group (the policy waits)."""
    from scaleup.launcher.resize import resize_group

    resize_group(run_folder, group, num_processes, _console())


cache_app = typer.Typer(invoke_without_command=True)
app.add_typer(cache_app, name="cache", rich_help_panel=MACHINE)


@cache_app.callback()
def cache(context: typer.Context) -> None:
    """List the rows kept as tokens, or clear them."""
    from scaleup.reports.kept_tokens import show_cache

    if context.invoked_subcommand is None:
        show_cache(_console())


@cache_app.command()
def clear(
    entries: Annotated[list[str] | None, typer.Argument(help="As listed. Default: all.", show_default=False)] = None,
) -> None:
    """Remove rows kept as tokens, but those that a run reads."""
    from scaleup.reports.kept_tokens import clear_cache

    clear_cache(_console(), entries or ())


@cache_app.command()
def limit(
    gib: Annotated[float, typer.Argument(min=0, max=1e6, help="GiB that all may take together.")],
) -> None:
    """Say how large all rows kept as tokens may be together (64 GiB by default): those used longest ago go first."""
    from scaleup.reports.kept_tokens import limit_cache

    limit_cache(_console(), gib)


@app.command(rich_help_panel=MACHINE)
def doctor(
    config: Annotated[Path | None, typer.Argument(help="A run's YAML file, to check what it needs too.")] = None,
    overrides: Overrides = None,
    nodes: Annotated[int, typer.Option(min=1, help="Number of nodes that run this at the same time.")] = 1,
    node_rank: Annotated[int, typer.Option(min=0, help="Rank of this node, from 0.")] = 0,
    interface: Annotated[str | None, typer.Option(help="Network interface, in place of parallel.interface.")] = None,
    wait: Annotated[float, typer.Option(min=0, help="Seconds to wait for the other nodes.")] = 60.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False,
) -> None:
    """Check this machine, or several, before a run."""
    from scaleup.doctor.examine import doctor
    from scaleup.doctor.nodes import Place

    place = Place(node_rank, nodes, interface, wait=wait)
    raise typer.Exit(doctor(config, overrides or (), place, _console(), as_json))


def main() -> None:
    with steady_streams():
        code = _code_of(app)
        if why := unwritten():
            print(f"error: stdout: what was printed is not whole: {why}", file=sys.stderr)
            code = code if set(RUNS).intersection(sys.argv[1:2]) else code or 1
        sys.exit(code)


def _code_of(command: Callable[[], object]) -> int:
    """Returns the exit code of a command; what it is refused for is printed."""
    try:
        command()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except ScaleupError as error:
        problems = error.problems
    except UnicodeEncodeError as error:  # a file's name that the locale has no letters for
        problems = [Problem("LC_ALL, LANG", f"{error.object[:LONGEST]!r} {NO_TEXT}", UTF_8)]
    else:
        return 0
    for problem in problems:
        print(f"error: {problem}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    main()
