"""This module holds the commands about runs: which there are, how they are, what they log, and their end."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from scaleup.cli.app import RUNS, app, new_console

RunPath = Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run.", show_default=False)]


@app.command(rich_help_panel=RUNS)
def runs(
    folder: Annotated[Path, typer.Argument(help="A folder of runs: a config's runs_dir.")] = Path("runs"),
    stage: Annotated[str | None, typer.Option(help="Only runs of this stage.")] = None,
    state: Annotated[
        str | None, typer.Option(help="Only runs that are running, finished, stopped, failed or unfinished.")
    ] = None,
    sort: Annotated[str, typer.Option(help="name, stage, state, step, eta, metric, size or age.")] = "age",
    as_json: Annotated[bool, typer.Option("--json", help="Print the list as JSON.")] = False,
) -> None:
    """List runs: how far they are, what they came to, what they were made from."""
    from scaleup.runs.listing import Wanted
    from scaleup.runs.show import show_runs

    show_runs(new_console(), folder, Wanted(stage, state, sort), as_json)


@app.command(rich_help_panel=RUNS)
def status(
    run: RunPath,
    as_json: Annotated[bool, typer.Option("--json", help="Print the status as JSON.")] = False,
) -> None:
    """Show how a run is: groups and ranks, steps, metrics, checkpoints, the last error, the command to go on."""
    from scaleup.runs.show import show_status

    show_status(new_console(), run, as_json)


@app.command(rich_help_panel=RUNS)
def logs(
    run: RunPath,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the run has ended.")] = False,
    rank: Annotated[str | None, typer.Option(help="Only this log, e.g. policy-rank0.")] = None,
) -> None:
    """Print the logs of a run's newest attempt."""
    from scaleup.runs.logs import print_logs

    raise typer.Exit(print_logs(run, rank, follow))


@app.command(rich_help_panel=RUNS)
def stop(run: RunPath) -> None:
    """Ask a running run to save and to stop, and wait until it has."""
    from scaleup.runs.stop import stop_run

    raise typer.Exit(stop_run(run, new_console()))


@app.command(rich_help_panel=RUNS)
def remove(
    run: RunPath,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Remove a run's folder, unless it runs or others were made from it."""
    from scaleup.runs.remove import remove_run

    raise typer.Exit(remove_run(run, yes, new_console()))
