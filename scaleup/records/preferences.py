"""Pairs made of rows of preferences: a chosen and a rejected response, or a ranking, of which every pair is made."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

from scaleup.config.schema import DataConfig, RowFormat, SourceConfig
from scaleup.errors import ScaleupError
from scaleup.records.chats import Chat, Message
from scaleup.records.examples import rendered, valid_format
from scaleup.records.template import Template, column_problem

Values = Mapping[str, Any]
TIED, EQUAL, EMPTY = "tied", "equal", "empty"
"""Why a pair is left out: neither is preferred, both say the same, a response of a ranking is missing."""


@dataclass(frozen=True)
class Preference:
    """Holds two responses to a prompt, which may be empty: texts, or messages that go on a conversation."""

    prompt: str | Chat
    chosen: str | list[Message]
    rejected: str | list[Message]
    margin: float = 0.0
    """By how much the chosen one's score should be higher, at least."""


@dataclass(frozen=True)
class Preferences:
    """Holds the pairs of one row, and counts those that were left out, by the reason."""

    pairs: list[Preference]
    left_out: Counter[str] = field(default_factory=Counter)


def preference_maker(data: DataConfig, source: SourceConfig) -> Callable[[Values, int], Preferences]:
    """Returns a function that makes the pairs of a row. It raises ScaleupError for a row that cannot be used."""
    form = valid_format(data, source)
    prompt = {"prompt": Template(form.prompt, form.columns)} if form.prompt is not None else {}
    if form.completions is not None:
        return lambda values, index: _of_ranking(form, rendered(prompt, values), values)
    both = {key: Template(getattr(form, key), form.columns) for key in ("chosen", "rejected")}
    return lambda values, index: _of_pair(form, rendered({**prompt, **both}, values), values)


def _of_pair(form: RowFormat, texts: Mapping[str, str], values: Values) -> Preferences:
    margin = 0.0 if form.margin is None else _number(_column(form, "margin"), values)
    if texts["chosen"] == texts["rejected"]:
        return Preferences([], Counter({EQUAL: 1}))
    return Preferences([Preference(texts.get("prompt", ""), texts["chosen"], texts["rejected"], margin)])


def _of_ranking(form: RowFormat, texts: Mapping[str, str], values: Values) -> Preferences:
    """Returns every pair of responses of which one is preferred."""
    key, sign = ("ratings", 1.0) if form.ratings is not None else ("ranks", -1.0)
    completions = _listed(_column(form, "completions"), values)
    worths = _listed(_column(form, key), values)
    if len(worths) != len(completions):
        what = f"holds {len(worths)} numbers for {len(completions)} completions"
        raise ScaleupError.of(_column(form, key), what, "give each completion one")
    left_out: Counter[str] = Counter()
    pairs = []
    for (one, of_one), (other, of_other) in combinations(zip(completions, worths, strict=True), 2):
        if not (_is_text(one) and _is_text(other)) or of_one is None or of_other is None:
            left_out[EMPTY] += 1
            continue
        ahead = sign * (_as_number(of_one, form, key) - _as_number(of_other, form, key))
        if ahead == 0 or one == other:
            left_out[TIED if ahead == 0 else EQUAL] += 1
            continue
        chosen, rejected = (one, other) if ahead > 0 else (other, one)
        pairs.append(Preference(texts.get("prompt", ""), chosen, rejected, abs(ahead) if form.margin else 0.0))
    return Preferences(pairs, left_out)


def _column(form: RowFormat, key: str) -> str:
    column = getattr(form, key)
    assert column is not None, "the format has been looked at"
    return str(column)


def _listed(column: str, values: Values) -> list[Any]:
    value = values.get(column)
    if not isinstance(value, list):
        raise ScaleupError(column_problem(column, values, wanted="a list"))
    return value


def _number(column: str, values: Values) -> float:
    value = values.get(column)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value != value:
        raise ScaleupError(column_problem(column, values, wanted="a number"))
    return float(value)


def _as_number(value: Any, form: RowFormat, key: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value != value:
        raise ScaleupError.of(_column(form, key), f"holds {value!r}, which is no number", "give numbers, or null")
    return float(value)


def _is_text(completion: Any) -> bool:
    return isinstance(completion, str) and bool(completion.strip())


def reasons(left_out: Mapping[str, int]) -> Iterator[str]:
    """Yields each reason with its count, for a sentence: `3 tied`."""
    return (f"{count} {reason}" for reason, count in sorted(left_out.items()) if count)
