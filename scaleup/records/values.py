"""What a row's value stands for. In some files everything is text, so text that spells a number or a list counts as one
wherever one is wanted: the same in every kind of file."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any

from scaleup.errors import ScaleupError
from scaleup.records.template import column_problem

NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.ASCII | re.IGNORECASE)
MAY_BEGIN_A_LIST = frozenset("[ \t\r\n")


def number_in(value: Any) -> float | None:
    """Returns a finite number, or the one that a text spells; None for anything else, also for a truth value."""
    if isinstance(value, str):
        value = float(value) if NUMBER.fullmatch(value := value.strip()) else None
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return number if math.isfinite(number := float(value)) else None
    except OverflowError:  # an integer beyond all doubles
        return None


def number_of(column: str, values: Mapping[str, Any]) -> float:
    """Returns the number in a row's column. Raises ScaleupError if there is none."""
    number = number_in(values.get(column))
    if number is None:
        raise ScaleupError(column_problem(column, values, wanted="a number"))
    return number


def list_in(where: str, value: Any, wanted: str = "a list") -> list[Any]:
    """Returns a list, or the one that a text spells in JSON. Raises ScaleupError for anything else; `where` is what the
    value is called there."""
    if isinstance(value, str) and not isinstance(value := _parsed(value), list):
        remedy = 'write it as JSON does, e.g. ["a", "b"], or name another column'
        raise ScaleupError.of(where, f"holds a str, not {wanted} or its JSON", remedy)
    if not isinstance(value, list):
        raise ScaleupError(column_problem(where, {where: value}, wanted))
    return value


def list_of(column: str, values: Mapping[str, Any], wanted: str = "a list") -> list[Any]:
    """Returns the list in a row's column, as `list_in` does."""
    if column not in values:
        raise ScaleupError(column_problem(column, values, wanted))
    return list_in(column, values[column], wanted)


def messages_in(value: Any) -> list[Any] | None:
    """Returns a list, or the messages that a text spells in JSON; None for anything else, which is a text."""
    if not isinstance(value, str):
        return value if isinstance(value, list) else None
    if value[:1] not in MAY_BEGIN_A_LIST or not isinstance(spelled := _parsed(value), list):
        return None
    are_messages = all(isinstance(each, dict) and ("role" in each or "from" in each) for each in spelled)
    return spelled if spelled and are_messages else None


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None
