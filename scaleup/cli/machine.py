"""This module holds the commands about this machine: what it has, and what it keeps."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from scaleup.cli.app import MACHINE, Overrides, app, new_console

cache_app = typer.Typer(invoke_without_command=True)
app.add_typer(cache_app, name="cache", rich_help_panel=MACHINE)


@cache_app.callback()
def cache(
    context: typer.Context,
    as_json: Annotated[bool, typer.Option("--json", help="Print the list as JSON.")] = False,
) -> None:
    """List the rows kept as tokens, or clear them."""
    from scaleup.reports.kept_tokens import show_cache

    if context.invoked_subcommand is None:
        show_cache(new_console(), as_json)


@cache_app.command()
def clear(
    entries: Annotated[list[str] | None, typer.Argument(help="As listed. Default: all.", show_default=False)] = None,
) -> None:
    """Remove rows kept as tokens, but those that a run reads."""
    from scaleup.reports.kept_tokens import clear_cache

    clear_cache(new_console(), entries or ())


@cache_app.command()
def limit(
    gib: Annotated[float, typer.Argument(min=0, max=1e6, help="GiB that all may take together.")],
) -> None:
    """Say how large all rows kept as tokens may be together (64 GiB by default): those used longest ago go first."""
    from scaleup.reports.kept_tokens import limit_cache

    limit_cache(new_console(), gib)


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
    raise typer.Exit(doctor(config, overrides or (), place, new_console(), as_json))
