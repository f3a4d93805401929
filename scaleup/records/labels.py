"""The labels of rows, and what they stand for to a classifier: a class, several labels, or numbers. In some files
everything is text, so a label may be spelled in several ways: the same ones in every kind of file."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from scaleup.config.data import ClassProblem
from scaleup.errors import Problem, ScaleupError
from scaleup.records.template import column_problem
from scaleup.records.values import list_in, number_in

Label = str | int | float | bool | tuple[Any, ...] | None
"""Is a name, a number, a truth value, or several of them, as a row has it."""
Target = int | tuple[float, ...]
"""Is the number of a class; or a number for each logit."""
TRUTHS = {"true": True, "false": False}
NUM_PLACES_KEPT = 5


def label_of(column: str, values: Mapping[str, Any]) -> Label:
    """Returns the label in a row's column, of which `Targets` make what is learned. Where the row has none, that is
    empty or null, which is no class: it is told of together with the other labels that are none.

    Raises ScaleupError for a value of another type, and where there is no such column."""
    value = values.get(column)
    label = tuple(map(_plain, value)) if isinstance(value, list) else _plain(value)
    parts = label if isinstance(label, tuple) else (label,)
    if column not in values or not all(isinstance(part, str | int | float | None) for part in parts):
        raise ScaleupError(column_problem(column, values, wanted="a label or its number"))
    return label


def _plain(value: Any) -> Any:
    """Returns a whole number as an int, and a number that is none as something that no label is."""
    if isinstance(value, float):
        return int(value) if value.is_integer() else value if number_in(value) is not None else object()
    return value


@dataclass(frozen=True)
class Targets:
    """Says what the labels of rows stand for."""

    names: tuple[str, ...]
    """Names the labels of the classifier, in the order of its logits; of regression its outputs."""
    problem: ClassProblem = "single_label"

    def of(self, label: Label) -> Target | None:
        """Returns what is learned from a label: of single_label the number of its class; of multi_label 1 for each
        label of its list, and 0 for the others; of regression its number, or those of its list. None if it is
        none."""
        if self.problem == "single_label":
            return class_number(label, self.names)
        if self.problem == "multi_label":
            several = several_in(label)
            classes = None if several is None else [class_number(each, self.names) for each in several]
            if classes is None or None in classes:
                return None
            return tuple(float(number in classes) for number in range(len(self.names)))
        several = (label,) if len(self.names) == 1 and not isinstance(label, tuple) else several_in(label) or ()
        numbers = tuple(number for each in several if (number := number_in(each)) is not None)
        return numbers if len(numbers) == len(several) == len(self.names) else None

    def fault(self, column: str, label: Label) -> Problem:
        """Returns why the label in a row's column is none."""
        if label is None or label == "":
            return Problem(column, "is empty" if label == "" else "is null", "give it a value or drop the row")
        if self.problem == "single_label":
            return no_class(column, label, self.names)
        if self.problem == "multi_label":
            several = several_in(label)
            if several is None:
                return Problem(column, f"{label!r} is no list of labels", 'write a list, e.g. ["a", "b"], or []')
            wrong = next(each for each in several if class_number(each, self.names) is None)
            return no_class(column, wrong, self.names)
        wanted = "a number" if len(self.names) == 1 else f"a list of {len(self.names)} numbers"
        shown = list(label) if isinstance(label, tuple) else label
        return Problem(column, f"{shown!r} is not {wanted}", f"make it {wanted} or drop the row")


def several_in(label: Label) -> tuple[Any, ...] | None:
    """Returns the labels of a list, or of a text that spells one in JSON; None for anything else."""
    if isinstance(label, str):
        try:
            return tuple(map(_plain, list_in("", label)))
        except ScaleupError:
            return None
    return label if isinstance(label, tuple) else None


def problem_of(labels: Collection[Label]) -> ClassProblem | None:
    """Returns what the labels of all rows say that a classifier of them is. None where there are none."""
    known = [label for label in labels if label is not None and label != ""]
    if not known:
        return None
    if all(several_in(label) is not None for label in known):
        return "multi_label"
    numbers = [number_in(label) for label in known]
    are_numbers = None not in numbers
    return "regression" if are_numbers and any(number % 1 for number in numbers if number) else "single_label"


def names_of(labels: Collection[Label], problem: ClassProblem) -> tuple[str, ...]:
    """Returns the names of a new classifier's labels, sorted as numbers if all are some; of regression those that
    Transformers gives as many outputs."""
    known = [label for label in labels if label is not None and label != ""]
    if problem == "regression":
        longest = max((len(several_in(label) or (label,)) for label in known), default=1)
        return tuple(f"LABEL_{place}" for place in range(longest))
    parts = [part for label in known for part in ((several_in(label) or ()) if problem == "multi_label" else (label,))]
    names = {_name(part) for part in parts if part is not None and not isinstance(part, tuple)}
    numbers = {name: number_in(name) for name in names}
    if None in numbers.values():
        return tuple(sorted(names))
    return tuple(sorted(names, key=lambda name: (numbers[name], name)))


def _name(label: Any) -> str:
    return str(label).lower() if isinstance(label, bool) else str(label)


def truth_of(column: str, values: Mapping[str, Any]) -> bool:
    """Returns the truth value in a row's column, or the one that a text spells. Raises ScaleupError if there is
    none."""
    truth = _truth_in(values.get(column))
    if truth is None and isinstance(values.get(column), str):
        raise ScaleupError.of(column, f"{values[column]!r} is neither true nor false", "use one of them")
    if truth is None:
        raise ScaleupError(column_problem(column, values, wanted="true or false"))
    return truth


def class_number(label: Label, names: Sequence[str]) -> int | None:
    """Returns the number of a row's class: of the name that a text is; of the name that its number is, where all names
    are numbers; else of the number that it is or spells, where the names are `numbered_otherwise` for none. True and
    false are a label of that name in any case, or else 1 and 0, where there are two labels. None if there is no such
    class."""
    if isinstance(label, str) and label in names:
        return list(names).index(label)
    if (truth := _truth_in(label)) is not None and (word := str(truth).lower()) in (named := [*map(str.lower, names)]):
        return named.index(word)
    number = _number_in(label, names)
    if number is None or numbered_otherwise(names):
        return None
    if None not in (values := list(map(number_in, names))):
        return values.index(number) if number in values else None
    return int(number) if number.is_integer() and 0 <= number < len(names) else None


def numbered_otherwise(names: Sequence[str]) -> tuple[str, int] | None:
    """Returns the first name that is a number, but not that of its class, and that class's number: whether a row's
    number is then meant as the one or as the other nobody can tell. None where there is no such name, or all names are
    numbers, one each: a row's number is then a name."""
    values = [number_in(name) for name in names]
    if None not in values and len(set(values)) == len(values):
        return None
    numbers = ((name, at, _number_in(name, names)) for at, name in enumerate(names))
    return next(((name, at) for name, at, number in numbers if number is not None and number != at), None)


def _number_in(label: Label, names: Sequence[str]) -> float | None:
    """Returns the number that a label is or spells. Truth values are numbers only where there are two labels."""
    truth = _truth_in(label)
    return number_in(label) if truth is None else float(truth) if len(names) == 2 else None


def _truth_in(label: Any) -> bool | None:
    if isinstance(label, str):
        return TRUTHS.get(label.strip().lower())
    return label if isinstance(label, bool) else None


def no_class(column: str, label: Label, names: Sequence[str]) -> Problem:
    """Returns why a label in a row's column is that of no class."""
    found = numbered_otherwise(names)
    if found and _number_in(label, names) is not None:
        what = f"{label!r} may be a name or a number: the model's class {found[1]} has the name {found[0]!r}"
        return Problem(column, what, f"write the name as text, as the model has it: {', '.join(map(repr, names))}")
    are_numbers = all(number_in(name) is not None for name in names)
    remedy = f"use one of {', '.join(names)}" + ("" if found or are_numbers else ", or its number")
    shown = list(label) if isinstance(label, tuple) else label
    return Problem(column, f"{shown!r} is no class of the model", remedy)


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

    @property
    def labels(self) -> list[Label]:
        return [label for _, label in self.counts]

    def unknown(self, targets: Targets) -> tuple[list[tuple[str, Label]], int]:
        """Returns place and label of the first rows whose label is none of a classifier, and how many more there
        are."""
        kinds = [kind for kind in self.places if targets.of(kind[1]) is None]
        rows = sorted((row, where, kind[1]) for kind in kinds for row, where in self.places[kind])
        first = [(where, label) for _, where, label in rows[:NUM_PLACES_KEPT]]
        return first, sum(self.counts[kind] for kind in kinds) - len(first)

    def spelled(self, targets: Targets) -> Iterator[tuple[str, str]]:
        """Yields each text that is the name of no class, but spells its number, with that class's name."""
        for _, label in self.places:
            number = targets.of(label)
            if isinstance(label, str) and label not in targets.names and isinstance(number, int):
                yield label, targets.names[number]
