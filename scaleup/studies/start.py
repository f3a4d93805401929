"""The runs of a pipeline that there is something to do for go in; each is started once its inputs are there, and the
exit code comes out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from scaleup.artifacts.run_folder import RunFolder
from scaleup.errors import ScaleupError
from scaleup.launcher.ending import RESUMABLE
from scaleup.launcher.processes import end_leftovers
from scaleup.launcher.signals import StopSignals
from scaleup.launcher.start import start
from scaleup.studies.pipeline import Pipeline, PipelineRun, of_run
from scaleup.studies.steps import step_of


def start_all(pipeline: Pipeline, todo: Sequence[str], console: Console) -> int:
    """Makes runs one after another, until one does not finish. Returns its exit code; that of a stopped run where a
    signal came in between. A run takes the signals that come while its processes are there."""
    with StopSignals() as signals, signals.passed_to(_interrupt):
        for number, name in enumerate(todo, 1):
            console.print(f"== {name} ({number} of {len(todo)})", soft_wrap=True)
            try:
                code = _run(pipeline.runs[name], console)
            except ScaleupError as error:
                raise ScaleupError(of_run(name, error.problems)) from error
            except KeyboardInterrupt:
                return RESUMABLE
            if code:
                console.print(f"runs.{name} ended with exit code {code}", soft_wrap=True)
                return code
            if signals.count and number < len(todo):
                return RESUMABLE
    return 0


def _interrupt() -> None:
    raise KeyboardInterrupt


def _run(run: PipelineRun, console: Console) -> int:
    """Makes one run, whose inputs are there by now. Returns its exit code."""
    return start(run.load(run.folders), console, resume=True) if make_room(run, console) else 0


def make_room(run: PipelineRun, console: Console) -> bool:
    """Moves what another run left out of the way of one whose inputs are there by now. Returns whether there is
    something to do for it."""
    step = step_of(run)
    if step.action == "again":
        aside = set_aside(run.folder, console)
        console.print(f"{step.why}: what was in {run.folder.path} is in {aside} now", soft_wrap=True)
    return not step.is_done


def set_aside(run: RunFolder, console: Console) -> Path:
    """Renames the folder of a run that is another one by now. Returns its new place. Raises ScaleupError while it
    runs."""
    with run.locked():
        end_leftovers(run.path, None, console)
        number = 1
        while (place := run.path.with_name(f"{run.path.name}.old-{number}")).exists():
            number += 1
        try:
            run.path.rename(place)
        except OSError as error:
            what = f"cannot be renamed to {place}: {error.strerror or error}"
            raise ScaleupError.of(f"runs_dir/name ({run.path})", what, "move it yourself") from error
    return place
