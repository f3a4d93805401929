"""This module holds the application that the commands register with, and the arguments that several of them take."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from scaleup.config.load import check_working_folder
from scaleup.errors import Problem, ScaleupError

LEAST_WIDTH = 40
"""Is the width in columns below which tables have no meaning, whatever COLUMNS says."""

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False)

TRAIN, RUNS, RESULTS, CLUSTER, MACHINE = "Train", "Runs", "Results", "Cluster", "Machine"
"""Names the panels of `scaleup --help`."""

ConfigFile = Annotated[Path, typer.Argument(help="The run's YAML file.", show_default=False)]
Target = Annotated[Path, typer.Argument(help="A finished run's folder, or a config file.", show_default=False)]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Dotted keys, e.g. train.max_steps=10.")
]


def new_console(stderr: bool = False) -> Console:
    """Returns what tables and progress are printed on. Users' words hold brackets and colons, and none is markup."""
    console = Console(markup=False, emoji=False, highlight=False, stderr=stderr)
    console.width = max(LEAST_WIDTH, console.width)
    return console


def refuse(options: Mapping[str, object], what: str) -> None:
    """Raises ScaleupError for those of some options that are given: they are `what`."""
    if given := [name for name, value in options.items() if value]:
        raise ScaleupError([Problem(name, f"is {what}", "leave it out") for name in given])


def _print_version(is_given: bool) -> None:
    if is_given:
        from scaleup.artifacts.lineage import Code

        code = Code.of_this()
        print(f"scaleup {code.version}" + (f" ({code.commit})" if code.commit else ""))
        raise typer.Exit


@app.callback()
def scaleup(
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Print the version, and the commit of a clone.", callback=_print_version, is_eager=True
        ),
    ] = False,
) -> None:
    """Fine-tune, align and compress language models: one YAML describes one run."""
    check_working_folder()
