"""Text templates over a row's columns: 'Review: {text}\\nSentiment:'."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from functools import lru_cache
from string import Formatter
from typing import Any

from scaleup.errors import Problem, ScaleupError
from scaleup.records.rows import Unreadable

NUM_NAMES_SHOWN = 10


class MissingColumn(Problem):
    """Tells that a row lacks the column that `where` names. One such problem a row may well be one mistake in the
    config."""


class Template:
    """Fills in text with `{column}` where a row's value goes; `{{` and `}}` stand for braces.

    `names` maps a field of the text to the column it stands for, where the two differ.
    """

    def __init__(self, text: str, names: Mapping[str, str] | None = None) -> None:
        self.text = text
        self.fields: tuple[str, ...] = ()
        self._parts: list[tuple[str, str | None]] = []
        try:
            for literal, field, spec, conversion in Formatter().parse(text):
                if field is not None:
                    _check_field(text, field, bool(spec or conversion))
                    self.fields += (field,) if field not in self.fields else ()
                self._parts.append((literal, field if field is None else (names or {}).get(field, field)))
        except ValueError as error:
            raise _malformed(text, f"is no template: {str(error).lower()}") from None
        self.columns = tuple(dict.fromkeys(column for _, column in self._parts if column is not None))

    def render(self, values: Mapping[str, Any]) -> str:
        """Returns the text with a row's values in it. Raises ScaleupError for each column that is missing or holds no
        text."""
        pieces: list[str] = []
        problems: list[Problem] = []
        for literal, column in self._parts:
            pieces.append(literal)
            if column is None:
                continue
            value = values.get(column)
            if isinstance(value, str):
                pieces.append(value)
            elif isinstance(value, int) or (isinstance(value, float) and math.isfinite(value)):
                pieces.append(str(value))
            else:
                problems.append(column_problem(column, values))
        if problems:
            raise ScaleupError(list(dict.fromkeys(problems)))
        return "".join(pieces)


def column_problem(column: str, values: Mapping[str, Any], wanted: str = "text") -> Problem:
    """Returns why a row's column cannot be used: it is missing, null or of a type that is not wanted."""
    if column not in values:
        return MissingColumn(column, "is no column of this row", _known_columns(column, tuple(map(str, values))))
    value = values[column]
    if value is None:
        return Problem(column, "is null", "give it a value or drop the row")
    if isinstance(value, Unreadable):
        return Problem(column, value.what, "mend or drop the row")
    if isinstance(value, float) and not math.isfinite(value):
        return Problem(column, f"is {value}, no finite number", "give it a value or drop the row")
    return Problem(column, f"holds a {type(value).__name__}, not {wanted}", f"make it {wanted} or name another column")


@lru_cache(maxsize=256)
def _known_columns(column: str, names: tuple[str, ...]) -> str:
    near = difflib.get_close_matches(column, names, n=1, cutoff=0.5)
    if near:
        return f"did you mean '{near[0]}'?"
    more = ", ..." if len(names) > NUM_NAMES_SHOWN else ""
    return f"it has {', '.join(names[:NUM_NAMES_SHOWN])}{more}" if names else "it has none"


def _check_field(text: str, field: str, is_formatted: bool) -> None:
    if not field.strip() or field.isdigit():
        raise _malformed(text, "has a field without a column's name")
    if is_formatted or "." in field or "[" in field:
        raise _malformed(text, f"has the field '{field}', which is no plain column name")


def _malformed(text: str, what: str) -> ScaleupError:
    remedy = "write {column} for a value, {{ and }} for braces; `columns` maps a field to a column of any name"
    return ScaleupError.of(repr(text), what, remedy)
