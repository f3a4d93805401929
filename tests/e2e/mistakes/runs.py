"""Mistakes of commands about runs: there is none, it does not go on, another one needs it."""

from __future__ import annotations

from pathlib import Path

from tests.e2e.mistakes.case import bad, folder_of
from tests.unit.runs.made import ended, made


def prepared(folder: Path) -> None:
    """A run that was never started."""
    made(folder / "runs", "reviews")


def needed(folder: Path) -> None:
    """A run that has ended, and another one that starts from its model."""
    run = ended(made(folder / "runs", "reviews"), "finished")
    made(folder / "runs", "child", parent=run.path)


LIST = ("runs", "none", "--stage", "sfd", "--state", "done", "--sort", "loss")
RUN = "runs/reviews"

CASES = {
    "runs": [
        bad(
            "a list with everything wrong",
            "--stage: there is no stage 'sfd'",
            "--state: there is no state 'done'",
            "--sort: there is no sort 'loss'",
            "none: is no folder",
            command=LIST,
        ),
        bad("status of no run", "rows.jsonl: is no run folder", command=("status", "rows.jsonl")),
        bad("logs of a folder", "runs: is no run folder", command=("logs", "runs"), prepare=folder_of("runs")),
        bad("logs of what never ran", "has no logs yet", command=("logs", RUN), prepare=prepared),
        bad("a log that is not there", "--rank: attempt 1 has", command=("logs", RUN, "--rank", "x"), prepare=needed),
        bad("stop of what does not run", "it is finished", command=("stop", RUN), prepare=needed),
        bad(
            "remove of what is needed, where nobody can be asked",
            "is what other runs were made from: child",
            "--yes: is needed where there is no terminal",
            command=("remove", RUN),
            prepare=needed,
        ),
    ]
}
