"""The labels of rows, and the classes of a classifier that they stand for. In some files everything is text, so a label
may be spelled in several ways: the same ones in every kind of file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from scaleup.errors import Problem, ScaleupError
from scaleup.records.template import column_problem
from scaleup.records.values import number_in

Label = str | int | bool
TRUTHS = {"true": True, "false": False}
NUM_PLACES_KEPT = 5


def label_of(column: str, values: Mapping[str, Any]) -> Label:
    """Returns the label in a row's column: a name, a number or a truth value, of which `class_number` makes a class.

    Raises ScaleupError if there is none."""
    label = values.get(column)
    if isinstance(label, float) and label.is_integer():
        label = int(label)
    if label == "":
        raise ScaleupError.of(column, "is empty", "give it a value or drop the row")
    if not isinstance(label, str | int):
        raise ScaleupError(column_problem(column, values, wanted="a label or its number"))
    return label


def class_number(label: Label, names: Sequence[str]) -> int | None:
    """Returns the number of a row's class: of the name that a text is; else of the number that it is or spells. True
    and false are a label of that name in any case, or else 1 and 0, where there are two labels. None if there is no
    such class."""
    if isinstance(label, str) and label in names:
        return list(names).index(label)
    truth = TRUTHS.get(label.strip().lower()) if isinstance(label, str) else label
    if isinstance(truth, bool):
        named = [name.lower() for name in names]
        word = str(truth).lower()
        if word in named:
            return named.index(word)
        return int(truth) if len(names) == 2 else None
    number = number_in(label)
    return int(number) if number is not None and number.is_integer() and 0 <= number < len(names) else None


def no_class(label: Label, names: Sequence[str]) -> Problem:
    return Problem("label", f"{label!r} is no class of the model", f"use one of {', '.join(names)}, or its number")


@dataclass
class SeenLabels:
    """Keeps the labels of a source, each with the first rows that have it: the number of a row, and where it is."""

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
