"""This module holds the commands that do something with finished runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from scaleup.cli.app import RESULTS, Overrides, Target, app, new_console, refuse


@app.command(rich_help_panel=RESULTS)
def evaluate(target: Target, overrides: Overrides = None) -> None:
    """Compare a finished run's model with the one it started from."""
    from scaleup.launcher.start import start
    from scaleup.plan.derive import evaluation_config

    raise typer.Exit(start(evaluation_config(target, overrides or ()), new_console()))


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
    raise typer.Exit(comparison.compare(targets, options, new_console()))


@app.command(rich_help_panel=RESULTS)
def generate(
    target: Target,
    overrides: Overrides = None,
    prompt: Annotated[list[str] | None, typer.Option(help="A prompt; may be repeated.")] = None,
) -> None:
    """Generate text with a finished run's model."""
    from scaleup.launcher.start import start
    from scaleup.plan.derive import generation_config

    raise typer.Exit(start(generation_config(target, overrides or (), prompt or ()), new_console()))


@app.command(rich_help_panel=RESULTS)
def chat(
    target: Annotated[str, typer.Argument(help="A finished run's folder, or a model.", show_default=False)],
    overrides: Overrides = None,
) -> None:
    """Talk with a model in this terminal: answers come as they are written."""
    from scaleup.launcher.chat import chat

    raise typer.Exit(chat(target, overrides or ()))


@app.command(rich_help_panel=RESULTS)
def label(
    answers: Annotated[
        list[Path],
        typer.Argument(help="Files that generate wrote, runs, or the folder of a labelling that goes on."),
    ],
    output: Annotated[Path | None, typer.Option("-o", "--output", help="A folder for labels and pairs.")] = None,
    labeller: Annotated[str | None, typer.Option(help="Who judges. Default: the user's name.")] = None,
    terminal: Annotated[bool, typer.Option("--terminal", help="Ask here instead of on a page.")] = False,
    seed: Annotated[int | None, typer.Option(help="Draws which answer stands first. Default: 0.")] = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port of the page. Default: a free one.")] = 0,
    agreement: Annotated[
        bool, typer.Option("--agreement", help="Ask nothing: print how far the labellers of a folder agree.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="With --agreement: print it as JSON.")] = False,
) -> None:
    """Let people judge answers side by side; writes the pairs that reward and dpo read."""
    from scaleup.labelling.label import LabelOptions, show_labels
    from scaleup.labelling.label import label as ask

    if agreement:
        asking = {"--output": output, "--labeller": labeller, "--terminal": terminal, "--port": port}
        refuse(asking | {"--seed": seed is not None}, "of labelling, not of --agreement")
        refuse({"ANSWERS": answers[1:]}, "more than one folder")
        show_labels(answers[0], new_console(), as_json)
        return
    refuse({"--json": as_json}, "of --agreement")
    ask(answers, output, LabelOptions(labeller, seed, terminal, port), new_console())


@app.command(rich_help_panel=RESULTS)
def export(target: Target, overrides: Overrides = None) -> None:
    """Write a finished run's model for other programs, adapter merged."""
    from scaleup.launcher.start import start
    from scaleup.plan.derive import export_config

    raise typer.Exit(start(export_config(target, overrides or ()), new_console()))


@app.command(rich_help_panel=RESULTS)
def lineage(
    run_folder: Annotated[Path, typer.Argument(help="The folder of a run.", show_default=False)],
    as_json: Annotated[bool, typer.Option("--json", help="Print the lineage as JSON.")] = False,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="A picture: FILE.png or FILE.svg.")] = None,
) -> None:
    """Show what a run was made from: runs, models, rows, code, machine."""
    from scaleup.artifacts.run_folder import RunFolder
    from scaleup.reports.lineage import show_lineage

    show_lineage(RunFolder(run_folder.absolute()), new_console(), as_json, output)


@app.command(rich_help_panel=RESULTS)
def report(
    targets: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN|PIPELINE...",
            help="Folders of runs, pipelines' files; RUN.KEY=VALUE as a pipeline was run with.",
        ),
    ],
    output: Annotated[Path | None, typer.Option("-o", "--output", help="The page's file.")] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Show it live, until the runs have ended.")] = False,
) -> None:
    """Write one HTML page about runs or a pipeline, or show it live."""
    from scaleup.runs.report import read_subject, write_report

    overrides = [each for each in targets if "=" in each and not Path(each).exists()]
    subject = read_subject([each for each in targets if each not in overrides], output, overrides)
    if follow:
        from scaleup.runs.live import follow as serve

        raise typer.Exit(serve(subject))
    print(write_report(subject))
