"""States of runs go in; tables on a terminal come out, or what JSON says of them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from math import isfinite
from pathlib import Path
from shlex import quote
from typing import Any

from rich.console import Console
from rich.table import Table

from scaleup.artifacts.checkpoints import whole_checkpoints
from scaleup.artifacts.noticeboard import UNREADABLE
from scaleup.artifacts.run_folder import Attempt, RunFolder
from scaleup.errors import ScaleupError
from scaleup.launcher.ranks import WorkerState
from scaleup.reports.lineage import ancestry
from scaleup.reports.terminal import heading, pairs_table, size_text, span_text
from scaleup.runs.listing import RunLine, Wanted, line_of, list_runs
from scaleup.runs.state import RunState, read_state

COLUMNS = ("run", "stage", "state", "step", "ETA", "metric", "size", "age", "made from")
NUM_CHECKPOINTS_SHOWN = 5


def show_runs(console: Console, folder: Path, wanted: Wanted, as_json: bool = False) -> None:
    """Print the runs below a folder: a row each, a line each where there is no terminal, or a JSON list.

    Raises ScaleupError as `list_runs` does."""
    lines = list_runs(folder, wanted)
    if as_json:
        print(json.dumps([line.as_json() for line in lines], indent=2, ensure_ascii=False))
    elif not lines:
        console.print(
            f"no such run in {folder}" if wanted.stage or wanted.state else f"no run in {folder}", soft_wrap=True
        )
    elif console.is_terminal:
        console.print(_table(folder, lines))
    else:
        for line in lines:
            print("\t".join(_cells(folder, line)))


def _table(folder: Path, lines: Sequence[RunLine]) -> Table:
    """Returns a row a run; a column in which no run has anything is left out, for narrow terminals."""
    rows = [_cells(folder, line) for line in lines]
    filled = [place for place in range(len(COLUMNS)) if any(row[place] for row in rows)]
    table = Table(box=None, padding=(0, 2, 0, 0))
    for place in filled:
        is_number = COLUMNS[place] in ("step", "ETA", "size", "age")
        table.add_column(COLUMNS[place], justify="right" if is_number else "left", overflow="fold", no_wrap=place == 0)
    for row in rows:
        table.add_row(*(row[place] for place in filled))
    return table


def _cells(folder: Path, line: RunLine) -> list[str]:
    return [
        _within(folder, line.path),
        line.stage,
        state_text(line.state, line.host if line.state == "running" else ""),
        steps_text(line.step, line.num_steps),
        "" if line.eta_seconds is None else span_text(line.eta_seconds),
        "" if line.metric is None else f"{line.metric} {line.value:.4g}",
        size_text(line.bytes),
        span_text(line.age_seconds, num_units=1),
        ", ".join(_within(folder, parent) for parent in line.parents),
    ]


def _within(folder: Path, path: Path) -> str:
    """Returns a run's path as seen from the folder that is listed."""
    for root in (folder.absolute(), folder.resolve()):
        if path != root and path.is_relative_to(root):
            return str(path.relative_to(root))
    return str(path)


def show_status(console: Console, path: Path, as_json: bool = False) -> None:
    """Print what is known of one run. Raises ScaleupError if there is none."""
    state = read_state(path)
    if as_json:
        print(json.dumps(status_as_json(state), indent=2, ensure_ascii=False))
        return
    heading(console, f"{state.run.path.name} ({state.stage}) in {state.run.path}")
    rows = [(key, value) for key, value in _rows(state) if value]
    if not console.is_terminal:
        for key, value in rows:
            print(f"{key}: {value}")
        return
    table = pairs_table()
    for key, value in rows:
        table.add_row(key, value)
    console.print(table)


def _rows(state: RunState) -> Iterator[tuple[str, str]]:
    line = line_of(state)
    yield "state", state_text(line.state, _where(state))
    yield "attempt", str(state.attempt.number) if state.attempt else ""
    left = "" if line.eta_seconds is None else f", {span_text(line.eta_seconds)} to go"
    yield "steps", steps_text(line.step, line.num_steps) + left
    for name, rank in state.ranks.items():
        yield name, _rank_text(rank, num_restarts(state.attempt, rank))
    yield "last metrics", ", ".join(f"{key} {_figure(value)}" for key, value in state.metrics.items())
    yield "metric", "" if line.metric is None else f"{line.metric} {_figure(line.value)}"
    checkpoints = [f"step {each['step']} ({size_text(each['bytes'])})" for each in _checkpoints(state)]
    yield "checkpoints", ", ".join(checkpoints)
    yield "size", size_text(line.bytes)
    yield "made from", ", ".join(map(str, line.parents))
    yield "stale", ", ".join(stale_of(state.run))
    yield "error", last_error(state)
    yield "logs", str(state.attempt.logs) if state.attempt else ""
    yield "go on", command_of(state)


def _rank_text(rank: WorkerState, restarts: int) -> str:
    again = f", {restarts} restart{'s' if restarts > 1 else ''} of its group" if restarts else ""
    return f"{rank.phase}{f' of step {rank.step}' if rank.step else ''}, process {rank.pid} on {rank.host}{again}"


def status_as_json(state: RunState) -> dict[str, Any]:
    """Return what `scaleup status --json` prints."""
    return {
        **line_of(state).as_json(),
        "process": state.place.pid if state.place else None,
        "attempt": state.attempt.number if state.attempt else None,
        "phase": state.phase,
        "stale": stale_of(state.run),
        "ranks": {
            name: {**_told(rank), "restarts": num_restarts(state.attempt, rank)} for name, rank in state.ranks.items()
        },
        "metrics": {key: _finite(value) for key, value in state.metrics.items()},
        "error": last_error(state),
        "checkpoints": _checkpoints(state),
        "logs": str(state.attempt.logs) if state.attempt else None,
        "command": command_of(state),
    }


def _told(rank: WorkerState) -> dict[str, Any]:
    return {"host": rank.host, "pid": rank.pid, "phase": rank.phase, "step": rank.step}


def num_restarts(attempt: Attempt | None, rank: WorkerState) -> int:
    """Return how often a rank's group was started again within an attempt, as groups that serve are: each start has a
    log of its own."""
    group = rank.name.rpartition("-rank")[0]
    logs = [file.stem.rpartition("-restart") for file in attempt.logs.glob(f"{group}-node*.log")] if attempt else []
    return max((int(number) for name, _, number in logs if name and number.isdecimal()), default=0)


def stale_of(run: RunFolder) -> list[str]:
    """Return which runs that it was made from were made again since, or are gone; nothing where no one can tell."""
    try:
        return list(ancestry(run).stale)
    except (ScaleupError, *UNREADABLE):
        return []


def last_error(state: RunState) -> str:
    """Return why the newest attempt failed, as the run printed it; empty where it did not, or could not say so."""
    ending = state.notice.ending if state.notice else None
    if state.state not in ("failed", "unfinished"):
        return ""
    if ending is not None and ending.kind == "failed":
        return ending.what
    error = (ending.error if ending else None) or (state.attempt.first_error() if state.attempt else None)
    if error is None:
        return ""
    lines = [f"{each['where']}: {each['what']} -> {each['remedy']}" for each in error["problems"]]
    return "\n".join(lines) or f"{error['rank']} failed: {error['error']}"


def command_of(state: RunState) -> str:
    """Return the command with which a run that does not go on now is continued; empty where there is nothing to do."""
    if state.state in ("running", "finished"):
        return ""
    num_nodes = state.plan.num_nodes if state.plan else 1
    others = f" (on each of the other {num_nodes - 1} nodes too, with --node-rank)" if num_nodes > 1 else ""
    return f"scaleup run {quote(shown_path(state.run.config_file))} --resume{others}"


def shown_path(path: Path) -> str:
    """Return a path as one would type it in the working folder."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def _checkpoints(state: RunState) -> list[dict[str, Any]]:
    """Returns the newest whole checkpoints, the newest first."""
    whole = whole_checkpoints(state.run.checkpoints)[::-1][:NUM_CHECKPOINTS_SHOWN]
    sizes = (sum(file.stat().st_size for file in each.path.rglob("*") if file.is_file()) for each in whole)
    return [{"step": each.step, "bytes": size, "path": str(each.path)} for each, size in zip(whole, sizes, strict=True)]


def _where(state: RunState) -> str:
    if state.state != "running" or state.place is None:
        return ""
    process = f", process {state.place.pid}" if state.place.pid is not None else ""
    return f"{state.place.host}{process}: {state.phase}"


def state_text(state: str, where: str = "") -> str:
    return "stopped (resumable)" if state == "stopped" else f"{state} on {where}" if where else state


def steps_text(step: int | None, num_steps: int | None) -> str:
    if step is None:
        return ""
    return f"{step:,}" if num_steps is None else f"{step:,} of {num_steps:,}"


def _finite(value: Any) -> Any:
    """Returns a value that is JSON: it has no infinities, as a perplexity may be."""
    return None if isinstance(value, float) and not isfinite(value) else value


def _figure(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)
