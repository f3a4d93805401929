"""This module holds the commands for schedulers, and for runs that go on there."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from scaleup.cli.app import CLUSTER, ConfigFile, Overrides, app, new_console, refuse
from scaleup.config.load import read_mapping

ClusterKind = Annotated[
    Literal["slurm", "kubernetes", "torchrun"] | None,
    typer.Option("--target", help="Default: what the config's cluster section is for."),
]
Sweep = Annotated[
    list[str] | None,
    typer.Option(metavar="KEY=[V1,V2,...]", help="One run for each value; if repeated, for each combination."),
]
MaxParallel = Annotated[int | None, typer.Option(min=1, help="Runs of a sweep at the same time (Slurm).")]


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
    """Write a cluster's job that runs a config, a job for each run of a pipeline, or for the trials of a search."""
    raw = read_mapping(config)
    if "pipeline" in raw:
        from scaleup.studies.jobs import render_pipeline

        refuse({"--sweep": sweep, "--max-parallel": max_parallel}, "of one config, not of a pipeline")
        render_pipeline(config, raw, overrides or (), target, output)
        return
    from scaleup.launcher.jobs import Request, named_folder, render_planned
    from scaleup.launcher.jobs import render as render_job

    if "study" in raw:
        from scaleup.studies.search_jobs import plan_search

        refuse({"--sweep": sweep}, "of one config, not of a search")
        folder = None if output is None else named_folder(output)
        render_planned(*plan_search(config, raw, overrides or (), target, max_parallel, folder), folder)
        return
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
    """Submit a config, a pipeline's runs or a search's trials to a cluster's scheduler and print the jobs' ids."""
    raw = read_mapping(config)
    if "pipeline" in raw:
        from scaleup.studies.jobs import submit_pipeline

        refuse({"--sweep": sweep, "--max-parallel": max_parallel}, "of one config, not of a pipeline")
        code = submit_pipeline(config, raw, overrides or (), target, dry_run, new_console(stderr=True))
        raise typer.Exit(code)
    from scaleup.launcher.jobs import Request, submit_planned
    from scaleup.launcher.jobs import submit as submit_job

    if "study" in raw:
        from scaleup.studies.search_jobs import plan_search

        refuse({"--sweep": sweep}, "of one config, not of a search")
        submit_planned(*plan_search(config, raw, overrides or (), target, max_parallel, None), dry_run)
        return
    submit_job(Request(config, overrides or (), target, sweep or (), max_parallel), dry_run)


@app.command(rich_help_panel=CLUSTER)
def resize(
    run_folder: Annotated[Path, typer.Argument(help="The folder of a run.")],
    group: Annotated[str, typer.Argument(help="A group that serves another, e.g. reward.")],
    num_processes: Annotated[int, typer.Argument(min=1, help="Its new number of processes.")],
) -> None:
    """Resize a running reward group (the policy waits)."""
    from scaleup.launcher.resize import resize_group

    resize_group(run_folder, group, num_processes, new_console())
