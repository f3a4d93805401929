"""The commands. No logic: each reads its arguments, calls one function and gives its exit code."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console

from scaleup.config.load import load_leniently
from scaleup.config.stages import json_schema
from scaleup.errors import ScaleupError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Fine-tuning, RLHF and compression of language models: one YAML describes one run.",
)

ConfigFile = Annotated[Path, typer.Argument(help="The run's YAML file.", show_default=False)]
Target = Annotated[Path, typer.Argument(help="A finished run's folder, or a config file.", show_default=False)]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Dotted keys, e.g. train.max_steps=10.")
]

ClusterKind = Annotated[
    Literal["slurm", "kubernetes", "torchrun"] | None,
    typer.Option("--target", help="By default what the config's cluster section is for."),
]
Sweep = Annotated[
    list[str] | None,
    typer.Option(metavar="KEY=[V1,V2,...]", help="A run for each value; given several times, for each combination."),
]
MaxParallel = Annotated[int | None, typer.Option(min=1, help="Of a sweep, so many runs at a time (Slurm).")]


@app.command()
def run(
    config: ConfigFile,
    overrides: Overrides = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the newest checkpoint, if there is one.")
    ] = False,
    node_rank: Annotated[
        int, typer.Option(min=0, help="This node's place among the run's, each of which runs this same command.")
    ] = 0,
) -> None:
    """Check, plan and run a config on this machine, or on several."""
    from scaleup.launcher.start import join, start

    loaded = load_leniently(config, overrides or ())
    raise typer.Exit(join(loaded, Console(), node_rank) if node_rank else start(loaded, Console(), resume))


@app.command()
def plan(
    config: ConfigFile,
    overrides: Overrides = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the plan as JSON.")] = False,
    gpus: Annotated[int | None, typer.Option(min=1, help="Plan for so many GPUs in all, not for this machine.")] = None,
    gpu_memory: Annotated[float | None, typer.Option(min=0.1, help="GiB of each of these GPUs.")] = None,
    nodes: Annotated[int | None, typer.Option(min=1, help="The machines that they are in; by default one.")] = None,
    flops: Annotated[float | None, typer.Option(min=0.001, help="TFLOP/s of one device at this precision.")] = None,
    utilisation: Annotated[float, typer.Option(min=0.01, max=1, help="The share of it that a run gets.")] = 0.4,
) -> None:
    """Show what a config would do: groups, batches, memory, compute, and everything it would be refused for."""
    from scaleup.launcher.show import show_plan
    from scaleup.plan.compute import Rate
    from scaleup.plan.described import described_machine
    from scaleup.plan.resolve import resolve

    machine, changes = described_machine(gpus, gpu_memory, nodes, overrides or ())
    loaded = load_leniently(config, changes)
    _, resolved = resolve(loaded, machine, check_run_folder=False, rate=Rate(flops, utilisation))
    if as_json:
        print(json.dumps(resolved.model_dump(mode="json"), indent=2))
    else:
        show_plan(Console(), resolved)


@app.command()
def render(
    config: ConfigFile,
    overrides: Overrides = None,
    target: ClusterKind = None,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="An empty folder; else it is printed.")] = None,
    sweep: Sweep = None,
    max_parallel: MaxParallel = None,
) -> None:
    """Write the job that runs a config on a cluster: a script for Slurm, manifests for Kubernetes."""
    from scaleup.launcher.jobs import Request
    from scaleup.launcher.jobs import render as render_job

    render_job(Request(config, overrides or (), target, sweep or (), max_parallel), output)


@app.command()
def submit(
    config: ConfigFile,
    overrides: Overrides = None,
    target: ClusterKind = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would be submitted.")] = False,
    sweep: Sweep = None,
    max_parallel: MaxParallel = None,
) -> None:
    """Submit a config to a cluster's scheduler, and print the job's id."""
    from scaleup.launcher.jobs import Request
    from scaleup.launcher.jobs import submit as submit_job

    submit_job(Request(config, overrides or (), target, sweep or (), max_parallel), dry_run)


@app.command()
def schema() -> None:
    """Print the JSON schema of config files, for editors."""
    print(json.dumps(json_schema(), indent=2))


@app.command()
def evaluate(target: Target, overrides: Overrides = None) -> None:
    """Measure a finished run's model beside the one it started from."""
    from scaleup.launcher.start import start
    from scaleup.plan.derive import evaluation_config

    raise typer.Exit(start(evaluation_config(target, overrides or ()), Console()))


@app.command()
def generate(
    target: Target,
    overrides: Overrides = None,
    prompt: Annotated[list[str] | None, typer.Option(help="A prompt; may be given several times.")] = None,
) -> None:
    """Generate text with a finished run's model."""
    from scaleup.launcher.start import start
    from scaleup.plan.derive import generation_config

    raise typer.Exit(start(generation_config(target, overrides or (), prompt or ()), Console()))


@app.command()
def export(target: Target, overrides: Overrides = None) -> None:
    """Write a finished run's model for others, its adapter merged, and check that it is the same model."""
    from scaleup.launcher.start import start
    from scaleup.plan.derive import export_config

    raise typer.Exit(start(export_config(target, overrides or ()), Console()))


@app.command()
def resize(
    run_folder: Annotated[Path, typer.Argument(help="A run folder, also of a run that is going on.")],
    group: Annotated[str, typer.Argument(help="A group that serves another, e.g. reward.")],
    num_processes: Annotated[int, typer.Argument(min=1, help="How many processes it is to have.")],
) -> None:
    """Give a run's reward group another size: it is started again while the policy waits."""
    from scaleup.launcher.resize import resize_group

    resize_group(run_folder, group, num_processes, Console())


@app.command()
def doctor(
    config: Annotated[Path | None, typer.Argument(help="A run's YAML file: what it needs is checked too.")] = None,
    overrides: Overrides = None,
    nodes: Annotated[int, typer.Option(min=1, help="Nodes that run this at the same time.")] = 1,
    node_rank: Annotated[int, typer.Option(min=0, help="This node's place among them, from 0.")] = 0,
    interface: Annotated[str | None, typer.Option(help="Instead of parallel.interface.")] = None,
    wait: Annotated[float, typer.Option(min=0, help="Seconds that the other nodes may take to come.")] = 60.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print a list of findings as JSON.")] = False,
) -> None:
    """Examine this machine, also together with others, and what a run needs of it."""
    from scaleup.doctor.examine import doctor
    from scaleup.doctor.nodes import Place

    place = Place(node_rank, nodes, interface, wait=wait)
    raise typer.Exit(doctor(config, overrides or (), place, Console(), as_json))


def main() -> None:
    try:
        app()
    except ScaleupError as error:
        for problem in error.problems:
            print(f"error: {problem}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
