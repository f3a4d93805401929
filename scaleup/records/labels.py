"""The labels of rows, and the classes of a classifier that they stand for. In some files everything is text, so a label
may be spelled in several ways: the same ones in every kind of file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from scaleup.errors import Problem, ScaleupError
from scaleup.records.template import column_problem
from scaleup.records.values import number_in

Label = str | int | bool | None
TRUTHS = {"true": True, "false": False}
NUM_PLACES_KEPT = 5


def label_of(column: str, values: Mapping[str, Any]) -> Label:
    """Returns the label in a row's column: a name, a number or a truth value, of which `class_number` makes a class.
    Where the row has none, that is empty or null, which is no class: it is told of together with the other labels that
    are none.

    Raises ScaleupError for a value of another type, and where there is no such column."""
    label = values.get(column)
    if isinstance(label, float) and label.is_integer():
        label = int(label)
    if column not in values or not isinstance(label, str | int | None):
        raise ScaleupError(column_problem(column, values, wanted="a label or its number"))
    return label


def class_number(label: Label, names: Sequence[str]) -> int | None:
    """Returns the number of a row's class: of the name that a text is; else of the number that it is or spells, where
    the names are `numbered_otherwise` for none. True and false are a label of that name in any case, or else 1 and 0,
    where there are two labels. None if there is no such class."""
    if isinstance(label, str) and label in names:
        return list(names).index(label)
    if (truth := _truth_in(label)) is not None and (word := str(truth).lower()) in (named := [*map(str.lower, names)]):
        return named.index(word)
    number = _number_in(label, names)
    if number is None or numbered_otherwise(names):
        return None
    return int(number) if number.is_integer() and 0 <= number < len(names) else None


def numbered_otherwise(names: Sequence[str]) -> tuple[str, int] | None:
    """Returns the first name that is a number, but not that of its class, and that class's number: whether a row's
    number is then meant as the one or as the other nobody can tell. None where there is no such name."""
    numbers = ((name, at, _number_in(name, names)) for at, name in enumerate(names))
    return next(((name, at) for name, at, number in numbers if number is not None and number != at), None)


def _number_in(label: Label, names: Sequence[str]) -> float | None:
    """Returns the number that a label is or spells. Truth values are numbers only where there are two labels."""
    truth = _truth_in(label)
    return number_in(label) if truth is None else float(truth) if len(names) == 2 else None


def _truth_in(label: Label) -> bool | None:
    if isinstance(label, str):
        return TRUTHS.get(label.strip().lower())
    return label if isinstance(label, bool) else None


def no_class(column: str, label: Label, names: Sequence[str]) -> Problem:
    """Returns why the label in a row's column is that of no class."""
    if label is None or label == "":
        return Problem(column, "is empty" if label == "" else "is null", "give it a value or drop the row")
    found = numbered_otherwise(names)
    if found and _number_in(label, names) is not None:
        what = f"{label!r} may be a name or a number: the model's class {found[1]} has the name {found[0]!r}"
        return Problem(column, what, f"write the name as text, as the model has it: {', '.join(map(repr, names))}")
    remedy = f"use one of {', '.join(names)}" + ("" if found else ", or its number")
    return Problem(column, f"{label!r} is no class of the model", remedy)


@dataclass
class SeenLabels:
    """Keeps the labels of a source, each with the first rows that have it: the number of a row, and where it is."""

    column: str = "label"
    places: dict[tuple[type, Label], list[tuple[int, str]]] = field(default_factory=dict)
    counts: dict[tuple[type, Label], int] = field(default_factory=dict)

    def add(self, label: Label, row: int, where: str) -> None:
        kind = (type(label), label)  # true is not 1 here
        self.counts[kind] = self.counts.get(kind, 0) + 1
        places = self.places.setdefault(kind, [])
        if len(places) < NUM_PLACES_KEPT:
            places.append((row, where))

    def unknown(self, names: Sequence[str]) -> tuple[list[tuple[str, Label]], int]:
        """Returns place and label of the first rows whose label is no class of a classifier, and how many more there
        are."""
        kinds = [kind for kind in self.places if class_number(kind[1], names) is None]
        rows = sorted((row, where, kind[1]) for kind in kinds for row, where in self.places[kind])
        first = [(where, label) for _, where, label in rows[:NUM_PLACES_KEPT]]
        return first, sum(self.counts[kind] for kind in kinds) - len(first)

    def spelled(self, names: Sequence[str]) -> Iterator[tuple[str, str]]:
        """Yields each text that is the name of no class, but spells its number, with that class's name."""
        for _, label in self.places:
            number = class_number(label, names)
            if isinstance(label, str) and label not in names and number is not None:
                yield label, names[number]
