"""What every reader of row files yields, and whom it tells of lines that it cannot read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn

from scaleup.errors import Problem, ScaleupError


@dataclass(frozen=True)
class Row:
    """Holds one row of a file: where it is, e.g. `reviews/train.jsonl:12`, and its columns."""

    where: str
    values: dict[str, Any]


@dataclass(frozen=True)
class Unreadable:
    """Stands in a row for a value that Python cannot hold, which is a mistake where it is used and nowhere else."""

    what: str
    """Says what the row has there: `holds ...`."""


def raise_problem(problem: Problem) -> NoReturn:
    raise ScaleupError(problem)


def ignore_note(note: str) -> None:
    """Does nothing: a worker's reading was told of by the plan."""


@dataclass(frozen=True)
class Listener:
    """Is told of each line that is no row, and of what a reader leaves aside."""

    problem: Callable[[Problem], None]
    note: Callable[[str], None]
