"""Runs and pipelines go in; one page about them comes out, as a file that needs nothing else."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path

from scaleup.artifacts.files import folder_problem, write_text
from scaleup.config.load import read_mapping
from scaleup.errors import Problem, ScaleupError
from scaleup.reports.html import DOCTYPE, Html, Limits, Part, join, page, section, table, tag
from scaleup.reports.page.graph import Arrow, Node, graph, layers
from scaleup.reports.page.results import compared_runs, comparison
from scaleup.reports.terminal import span_text
from scaleup.runs.page import COLORS, RunView, Tile, body, commands, result_tile, tiles
from scaleup.runs.show import shown_path, state_text, steps_text
from scaleup.runs.state import is_run_folder, read_state
from scaleup.studies.pipeline import Pipeline, PipelineRun, read_pipeline

MAX_BYTES = 2_000_000
"""Bounds a page, whatever the runs have logged."""
NOT_STARTED = "not started"


@dataclass(frozen=True)
class Subject:
    """Stands for what a report is about: one run, or several, some of them a pipeline's."""

    runs: dict[str, Path]
    """Maps what a run is called on the page -> its folder, also of a pipeline's run that is yet to be made."""
    pipelines: tuple[tuple[Path, Pipeline], ...] = ()
    """Holds each pipeline's file, and what it says."""
    output: Path | None = None
    """Is where the page is written, if that was said."""

    @cached_property
    def title(self) -> str:
        names = [pipeline.name for _, pipeline in self.pipelines]
        if self.is_one_pipeline:
            return f"Pipeline {names[0]}"
        return next(iter(self.runs)) if self.is_one_run else f"{len(self.runs)} runs"

    @property
    def is_one_run(self) -> bool:
        return len(self.runs) == 1 and not self.pipelines

    @property
    def is_one_pipeline(self) -> bool:
        return len(self.pipelines) == 1 and len(self.runs) == len(self.pipelines[0][1].runs)

    @property
    def file(self) -> Path:
        """Returns where its page is written by default: in the folder of a run, beside those of a pipeline, else in the
        working folder."""
        if self.output is not None:
            return self.output
        if self.is_one_run:
            return next(iter(self.runs.values())) / "report.html"
        if self.is_one_pipeline:
            return next(iter(self.runs.values())).parent / f"{self.pipelines[0][1].name}-report.html"
        return Path("report.html")


def read_subject(targets: Sequence[str], output: Path | None = None, overrides: Sequence[str] = ()) -> Subject:
    """Returns what the targets name: folders of runs, and files of pipelines. `output` is the page's file,
    `overrides` are those that a pipeline was run with.

    Raises ScaleupError for all that are neither, for all that were never started, and for a file that cannot be
    written."""
    runs: dict[str, Path] = {}
    pipelines: list[tuple[Path, Pipeline]] = []
    problems: list[Problem] = []
    for target in dict.fromkeys(targets):
        path = Path(target)
        try:
            if path.is_file():
                pipelines.append((path, _pipeline(path, overrides)))
                found = {name: run.folder.path for name, run in pipelines[-1][1].runs.items()}
            else:
                found = {_name(path.absolute()): _started(path)}
        except ScaleupError as error:
            problems += error.problems
            continue
        for name, folder in found.items():
            if folder not in runs.values():
                runs[name if name not in runs else shown_path(folder)] = folder
    subject = Subject(runs, tuple(pipelines), output)
    if overrides and not any(Path(target).is_file() for target in targets):
        what = "overrides a run of a pipeline, and no pipeline is named"
        problems += [Problem(override, what, "leave it out, or name the pipeline's file") for override in overrides]
    if output is not None or not problems:
        problems += _output_problems(subject.file)
    if problems:
        raise ScaleupError(problems)
    return subject


def _name(folder: Path) -> str:
    """Returns what a run is called: of an evaluation in another run's folder, behind that one's name."""
    is_inner = is_run_folder(folder.parent.parent)
    return "/".join(folder.parts[-3:]) if is_inner else folder.name


def _started(path: Path) -> Path:
    state = read_state(path)
    if state.attempt is None:
        remedy = f"scaleup run {shown_path(state.run.config_file)}"
        raise ScaleupError.of(str(path), "is a run that was never started: there is nothing to report", remedy)
    return state.run.path


def _pipeline(file: Path, overrides: Sequence[str]) -> Pipeline:
    raw = read_mapping(file)
    if "pipeline" not in raw:
        what = "is no pipeline: it has no key `pipeline`"
        raise ScaleupError.of(str(file), what, "name a pipeline's file, or the folder of a run, e.g. runs/reviews")
    pipeline = read_pipeline(file, raw, overrides)
    if pipeline.problems:
        raise ScaleupError(pipeline.problems)
    if not any(_is_started(run.folder.path) for run in pipeline.runs.values()):
        what = "is a pipeline of which no run was ever started: there is nothing to report"
        raise ScaleupError.of(str(file), what, f"scaleup run {file}")
    return pipeline


def _is_started(path: Path) -> bool:
    return is_run_folder(path) and read_state(path).attempt is not None


def _output_problems(file: Path) -> Iterator[Problem]:
    folder = file.absolute().parent
    if file.is_dir():
        yield Problem("--output", f"{file} is a folder", f"name a file in it, e.g. {file / 'report.html'}")
    elif not folder.is_dir():
        yield Problem("--output", f"there is no folder {folder}", "make it, or name another file")
    elif why := folder_problem(folder):
        yield Problem("--output", f"{file} cannot be written: {why}", "name another file")
    elif file.exists() and not _is_page(file):
        yield Problem("--output", f"{file} is there, and is no page", "name another file, or remove it")


def _is_page(file: Path) -> bool:
    """Returns whether a file may be written over: one of ours, or an empty one."""
    with suppress(OSError):
        if file.is_file():  # and no device
            with file.open("rb") as opened:
                return opened.read(len(DOCTYPE)) in (b"", DOCTYPE.encode())
    return False


def write_report(subject: Subject) -> Path:
    """Writes the page of a subject, whole or not at all, and returns its file. Raises ScaleupError if it cannot be
    written."""
    text, file = render(subject), subject.file
    try:
        write_text(file, text)
    except OSError as error:
        what = f"{file} cannot be written: {error.strerror or error}"
        raise ScaleupError.of("--output", what, "name another file") from error
    return file


def render(subject: Subject, script: str = "") -> str:
    """Returns the page of a subject as it is now. `script` keeps it up to date."""
    limits = Limits()
    while True:
        text = page(subject.title, _body(subject, limits, bool(script)), script)
        if len(text.encode()) < MAX_BYTES or limits == limits.halved():
            return text
        limits = limits.halved()


def _body(subject: Subject, limits: Limits, is_live: bool) -> Html:
    views = {
        name: RunView.read(folder, f"run-{number}", name, limits) if _is_started(folder) else None
        for number, (name, folder) in enumerate(subject.runs.items(), 1)
    }
    known = [view for view in views.values() if view is not None]
    content = body(known[0], 2) if subject.is_one_run else _overview(subject, views, limits)
    now = datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z")
    live = tag("p", "live", class_="live") if is_live else None
    return join(
        tag("header", tag("p", "scaleup report", class_="brand"), tag("h1", subject.title), live),
        tag("main", content, data_live="yes" if is_live else None),
        tag("footer", tag("p", f"Made by scaleup on {now}. One file: it loads nothing.")),
    )


def _overview(subject: Subject, views: dict[str, RunView | None], limits: Limits) -> Html:
    """Returns what several runs have come to, then each of them."""
    chapters = [
        section(name, body(view, 3), id_=view.id) for name, view in views.items() if view is not None
    ]  # fmt: skip
    states = [view.state.state if view else NOT_STARTED for view in views.values()]
    counted = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
    return join(
        tag("p", f"{len(views)} runs: {counted}.", class_="what"),
        tiles(_tiles(views)),
        (_chain(pipeline, views) for _, pipeline in subject.pipelines),
        _comparisons(views, limits),
        section("Runs", _table(views)),
        _next(subject, states),
        chapters,
    )


def _tiles(views: dict[str, RunView | None]) -> Iterator[Tile]:
    """Yields how good the last run is that was compared (if none was: that has a result), how many have finished, and
    how long they took."""
    known = {name: view for name, view in views.items() if view is not None}
    measured = {name: view for name, view in known.items() if view.comparison is not None} or known
    results = [best for name, view in measured.items() if (best := result_tile(view, name)) is not None]
    yield from results[-1:]
    num_finished = sum(view.state.state == "finished" for view in known.values())
    is_over = num_finished == len(views)
    yield Tile("Finished", f"{num_finished} of {len(views)}", "runs", COLORS["finished"] if is_over else "")
    seconds = [each for view in known.values() if (each := view.wall_seconds) is not None]
    if seconds:
        yield Tile("Time", span_text(sum(seconds)), "all runs together")


def _chain(pipeline: Pipeline, views: dict[str, RunView | None]) -> Html:
    """Returns a picture of a pipeline's runs, in the colors of their states."""
    by_folder = {view.run.path: view for view in views.values() if view is not None}
    columns = [
        {name: _node(pipeline.runs[name], by_folder.get(pipeline.runs[name].folder.path)) for name in column}
        for column in layers({name: run.parents for name, run in pipeline.runs.items()})
    ]
    arrows = [
        Arrow(each.run, name, each.key.removesuffix(".path"))
        for name, run in pipeline.runs.items()
        for each in run.inputs
    ]
    return section("Chain", graph(columns, arrows, f"Runs of pipeline {pipeline.name}"))


def _node(run: PipelineRun, view: RunView | None) -> Node:
    state = view.state.state if view else NOT_STARTED
    return Node(run.name, f"{run.raw.get('stage', '')}, {state}", COLORS.get(state, ""))


def _table(views: dict[str, RunView | None]) -> Html:
    rows: list[list[Part]] = []
    for name, view in views.items():
        if view is None:
            rows.append([name, _badge(NOT_STARTED), "", "", "", "", ""])
            continue
        state, best, seconds = view.state, view.headline, view.wall_seconds
        figure = [f"{best.name} {best.value}", best.note] if best else ["", ""]
        time = "" if seconds is None else span_text(seconds)
        steps = steps_text(state.step, state.num_steps)
        rows.append([tag("a", name, href=f"#{view.id}"), _badge(state.state), *figure, steps, time, state.stage])
    return table(["run", "state", "result", "", "steps", "time", "stage"], rows, "All runs", "overview")


def _badge(state: str) -> Html:
    return tag("span", state_text(state), class_=f"badge {COLORS.get(state, '')}".strip())


def _comparisons(views: dict[str, RunView | None], limits: Limits) -> Html:
    """Returns what evaluations of several models have found, and the runs' own evaluations beside one another."""
    known = {name: view for name, view in views.items() if view is not None and view.evaluation is not None}
    own = {name: view for name, view in known.items() if view.evaluation is not None and view.is_evaluation}
    parts: list[Part] = [
        (tag("h3", name), comparison(view.comparison, limits, is_whole=False))
        for name, view in own.items()
        if view.comparison is not None
    ]
    others = {name: view.evaluation for name, view in known.items() if view.evaluation is not None and name not in own}
    if len(others) > 1:
        try:
            parts.append(comparison(compared_runs(others), limits, is_whole=False))
        except ScaleupError as error:
            parts.append(tag("p", f"The evaluations of {', '.join(others)} do not compare: {error}", class_="note"))
    return section("Comparisons", parts)


def _next(subject: Subject, states: Iterable[str]) -> Html:
    is_over = set(states) <= {"finished"}
    rows = [(f"scaleup run {shown_path(file.absolute())}", "make what is missing") for file, _ in subject.pipelines]
    return section("What to run next", None if is_over else commands(rows))
