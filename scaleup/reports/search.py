"""The record of a search goes in; the table that people read comes out, best trials first."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from scaleup.artifacts.study import StudyFolder, StudyRecord, Trial, param_text

NUM_TRIALS_SHOWN = 30
LONGEST = 60
"""Bounds the letters of an error in the table; a trial's log has all of it."""


def show_study(console: Console, record: StudyRecord, folder: StudyFolder) -> None:
    """Prints the trials, best first, and where all of them stand."""
    if record.trials and console.is_terminal:
        console.print(_table(record))
    elif record.trials:
        print("\n".join("\t".join(row) for row in _rows(record)))
    if (left_out := len(record.trials) - NUM_TRIALS_SHOWN) > 0:
        console.print(f"and {left_out} more in {folder.table_file}", soft_wrap=True)
    names = ", ".join(folder.trial_folder(trial.number).name for trial in record.best)
    what = "best" if len(record.objectives) == 1 else "Pareto front"
    counts = {state: sum(trial.state == state for trial in record.trials) for state in STATES}
    told = ", ".join(f"{count} {state}" for state, count in counts.items() if count)
    console.print(f"{what}: {names or 'none yet'}; {told or 'no trial yet'}; {record.num_steps} steps", soft_wrap=True)


STATES = ("finished", "pruned", "paused", "running", "failed")


def _rows(record: StudyRecord) -> list[list[str]]:
    """Returns a row a trial, the titles first."""
    params = list(record.trials[0].params)
    best = {trial.number for trial in record.best}
    rows = [["trial", "state", "steps", *record.objectives, *params]]
    for trial in record.ranked[:NUM_TRIALS_SHOWN]:
        mark = "*" if trial.number in best else ""
        values = [_value(trial, name, record) for name in record.objectives]
        settings = [param_text(trial.params[key]) for key in params]
        rows.append([f"{trial.number}{mark}", _state(trial), str(trial.steps), *values, *settings])
    return rows


def _state(trial: Trial) -> str:
    return f"failed: {trial.error[:LONGEST]}" if trial.state == "failed" else trial.state


def _value(trial: Trial, name: str, record: StudyRecord) -> str:
    """Returns an objective's value; of an unfinished trial, that at its last rung, in brackets."""
    if (value := record.shown_value(trial, name)) is None:
        return ""
    return f"{value:.5g}" if trial.state == "finished" else f"({value:.5g})"


def _table(record: StudyRecord) -> Table:
    titles, *rows = _rows(record)
    table = Table(box=None, padding=(0, 2, 0, 0))
    for title in titles:
        table.add_column(title, justify="left" if title == "state" else "right", overflow="fold")
    for row in rows:
        table.add_row(*row)
    return table


def trial_line(trial: Trial, record: StudyRecord) -> str:
    """Returns what has become of a trial that has just stopped."""
    values = [f"{name} {text}" for name in record.objectives if (text := _value(trial, name, record).strip("()"))]
    how = {
        "paused": f"was compared at step {trial.steps}",
        "finished": f"finished after {trial.steps} steps",
        "failed": f"failed: {trial.error}",
    }
    line = how.get(trial.state, f"was stopped at step {trial.steps}, and goes on when the search does")
    return ": ".join([line, ", ".join(values)]) if values and trial.state != "failed" else line
