"""This module holds the commands that make a config and run it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from scaleup.cli.app import TRAIN, ConfigFile, Overrides, app, new_console, refuse
from scaleup.config.load import load_leniently, load_mapping, read_mapping
from scaleup.config.stages import STAGES, json_schema
from scaleup.errors import ScaleupError

if TYPE_CHECKING:
    from scaleup.plan.machine import Machine


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
def convert(
    file: Annotated[Path, typer.Argument(help="A YAML file of another trainer.", show_default=False)],
    output: Annotated[Path | None, typer.Option("-o", "--output", help="A new file; default: print.")] = None,
    trainer: Annotated[
        str | None,
        typer.Option("--from", metavar="TRAINER", help="Whose file it is, e.g. axolotl. Default: told by the keys."),
    ] = None,
    num_processes: Annotated[
        int | None, typer.Option(min=1, help="Processes that the other trainer ran on: what a step holds.")
    ] = None,
) -> None:
    """Turn another trainer's config into one of ours, with a comment on what has no counterpart."""
    from scaleup.config.convert import convert as convert_config

    text = convert_config(file, trainer, num_processes, output)
    if output is None:
        print(text, end="")
    else:
        print(f"{output}: read its comments, then scaleup plan {output}")


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
    only: Annotated[str | None, typer.Option(metavar="NAME", help="Of a pipeline, this run alone.")] = None,
    first: Annotated[
        str | None, typer.Option("--from", metavar="NAME", help="Of a pipeline, this run and all that need it.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Of a pipeline, show what would run, and why.")] = False,
) -> None:
    """Check, plan and run a config, on this machine or on several; or a pipeline of configs."""
    raw = read_mapping(config)
    if "pipeline" in raw:
        from scaleup.studies.run import PipelineOptions, run_pipeline

        refuse(
            {"--node-rank": node_rank, "--accept-changed-data": accept_changed_data}, "of one run, not of a pipeline"
        )
        options = PipelineOptions(overrides or (), only, first, dry_run)
        raise typer.Exit(run_pipeline(config, raw, options, new_console()))
    refuse({"--only": only, "--from": first, "--dry-run": dry_run}, "of a pipeline, not of one run")
    from scaleup.launcher.start import join, start

    loaded = load_mapping(raw, overrides or ())
    if node_rank:
        raise typer.Exit(join(loaded, new_console(), node_rank))
    raise typer.Exit(start(loaded, new_console(), resume, accept_changed_data))


@app.command(rich_help_panel=TRAIN)
def demo(
    overrides: Overrides = None,
    tiny: Annotated[bool, typer.Option("--tiny", help="Random models: a few minutes, and nothing is learned.")] = False,
) -> None:
    """Run the whole chain on real parts, from SFT to PPO, and write its report: about 12 minutes on two cores."""
    from scaleup.runs.report import read_subject, write_report
    from scaleup.studies.run import PipelineOptions, run_pipeline

    name = "demo-tiny.yaml" if tiny else "demo.yaml"
    file = Path(__file__).resolve().parents[2] / "configs/pipelines" / name
    if not file.is_file() or not Path("data/reviews").is_dir():
        what = "needs configs/pipelines and data/reviews of a clone of the repository"
        raise ScaleupError.of("demo", what, "clone it, make setup, and run this command in its folder")
    code = run_pipeline(file, read_mapping(file), PipelineOptions(overrides or ()), new_console())
    if not code:
        print(write_report(read_subject([str(file)], overrides=overrides or ())))
    raise typer.Exit(code)


@app.command(rich_help_panel=TRAIN)
def search(
    study: Annotated[Path, typer.Argument(help="The search's YAML file.", show_default=False)],
    overrides: Overrides = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check all, and show what there is so far.")] = False,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Go on with trials that failed.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the trials as JSON, progress to stderr.")] = False,
) -> None:
    """Search for the best values of a config's keys: grid, random, TPE, ASHA."""
    from scaleup.studies.search_run import SearchOptions, run_search

    options = SearchOptions(overrides or (), dry_run, as_json, retry_failed)
    raise typer.Exit(run_search(study, read_mapping(study), options, new_console(stderr=as_json)))


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
        show_plan(new_console(), resolved)


def _fit(config: Path, overrides: Sequence[str], changes: Sequence[str], machine: Machine, as_json: bool) -> None:
    from scaleup.plan.fit import propose
    from scaleup.plan.search import Asked
    from scaleup.reports.fit import show_fit

    with Console(stderr=True).status("planning configs"):
        found = propose(Asked(config, overrides, changes), machine)
    if as_json:
        print(json.dumps(asdict(found), indent=2))
    else:
        show_fit(new_console(), config, found)


@app.command(rich_help_panel=TRAIN)
def verify(
    config: ConfigFile,
    overrides: Overrides = None,
    only: Annotated[list[str] | None, typer.Option(metavar="NAME", help="This equality alone; repeatable.")] = None,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="A page: FILE.html.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the table as JSON, progress to stderr.")] = False,
) -> None:
    """Train tiny twins of a config and measure the equalities that its runs are to have."""
    from scaleup.studies.verify.verify import VerifyOptions, run_verify

    options = VerifyOptions(overrides or (), only or (), as_json, output)
    raise typer.Exit(run_verify(config, options, new_console(stderr=as_json)))


@app.command(rich_help_panel=TRAIN)
def schema() -> None:
    """Print the JSON schema of config files, for editors."""
    print(json.dumps(json_schema(), indent=2))
