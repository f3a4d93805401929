"""Pairs made of rows of preferences: a chosen and a rejected response, or a ranking, of which every pair is made."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import combinations, takewhile
from typing import Any

from scaleup.config.data import DataConfig, RowFormat, SourceConfig
from scaleup.errors import Problem, ScaleupError
from scaleup.records.chats import Chat, Message, is_answer
from scaleup.records.examples import response_faults, valid_format
from scaleup.records.parts import Templates, is_list, read_parts, rendered, text_part, together
from scaleup.records.template import Template
from scaleup.records.turns import read_turns
from scaleup.records.values import list_of, number_in, number_of

Values = Mapping[str, Any]
Named = tuple[str, Any]
"""A response, text or Chat, after its place in the row."""
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
        of_list = _of_open if is_open(form) else _of_ranking
        return lambda values, index: of_list(form, prompt, values)
    both = {key: Template(getattr(form, key), form.columns) for key in ("chosen", "rejected")}
    return lambda values, index: _of_pair(form, {**prompt, **both}, values)


def _of_pair(form: RowFormat, templates: Templates, values: Values) -> Preferences:
    are_messages = any(is_list(template, values) for template in templates.values())
    if are_messages:
        _same_kind([is_list(templates[key], values) for key in ("chosen", "rejected")], "chosen, rejected")
    read = partial(read_parts, templates, form.tools, values) if are_messages else partial(rendered, templates, values)
    made = together({"parts": read, "margin": partial(_margin, form, values)})
    parts = made["parts"]
    chosen, rejected = parts["chosen"], parts["rejected"]
    if chosen == rejected:
        return Preferences([], Counter({EQUAL: 1}))
    if are_messages:
        pair = paired(parts.get("prompt"), parts["tools"], ("chosen", chosen), ("rejected", rejected))
    else:
        pair = Preference(parts.get("prompt", ""), chosen, rejected)
    return Preferences([replace(pair, margin=made["margin"])])


def is_open(form: RowFormat) -> bool:
    """Returns whether rows of a format leave open which of their completions is the better."""
    return form.completions is not None and form.ranks is None and form.ratings is None


def _of_open(form: RowFormat, prompt: Templates, values: Values) -> Preferences:
    """Returns every pair of responses that differ, in their order."""
    column = _column(form, "completions")
    completions = together({column: partial(list_of, column, values)})[column]
    responses, join = _responses(form, column, completions, prompt, values)
    left_out: Counter[str] = Counter()
    pairs = []
    for one, other in combinations(responses, 2):
        if one is None or other is None:
            left_out[EMPTY] += 1
        elif one[1] == other[1]:
            left_out[EQUAL] += 1
        else:
            pairs.append(join(one, other))
    return Preferences(pairs, left_out)


def _of_ranking(form: RowFormat, prompt: Templates, values: Values) -> Preferences:
    """Returns every pair of responses of which one is preferred."""
    key, sign = ("ratings", 1.0) if form.ratings is not None else ("ranks", -1.0)
    column = _column(form, "completions")
    listed = together({name: partial(list_of, name, values) for name in (column, _column(form, key))})
    completions, worths = listed[column], listed[_column(form, key)]
    if len(worths) != len(completions):
        what = f"holds {len(worths)} numbers for {len(completions)} completions"
        raise ScaleupError.of(_column(form, key), what, "give each completion one")
    responses, join = _responses(form, column, completions, prompt, values)
    left_out: Counter[str] = Counter()
    pairs = []
    for (one, of_one), (other, of_other) in combinations(zip(responses, worths, strict=True), 2):
        if one is None or other is None or of_one is None or of_other is None:
            left_out[EMPTY] += 1
            continue
        ahead = sign * (_as_number(of_one, form, key) - _as_number(of_other, form, key))
        if ahead == 0 or one[1] == other[1]:
            left_out[TIED if ahead == 0 else EQUAL] += 1
            continue
        pair = join(one, other) if ahead > 0 else join(other, one)
        pairs.append(replace(pair, margin=abs(ahead) if form.margin else 0.0))
    return Preferences(pairs, left_out)


def _responses(
    form: RowFormat, column: str, completions: Sequence[Any], prompt: Templates, values: Values
) -> tuple[list[Named | None], Callable[[Named, Named], Preference]]:
    """Returns the responses of a ranking, None for each that says nothing, and what makes a pair of two of them."""
    places = [f"{column}[{at}]" for at in range(len(completions))]
    are_lists = [isinstance(each, list) for each in completions if each]
    if not any(are_lists) and not any(is_list(template, values) for template in prompt.values()):
        text = rendered(prompt, values).get("prompt", "")
        found = [(place, one) if _is_text(one) else None for place, one in zip(places, completions, strict=True)]
        return found, lambda chosen, rejected: Preference(text, chosen[1], rejected[1])
    _same_kind(are_lists, column)
    reads = {place: partial(_read, place, one) for place, one in zip(places, completions, strict=True)}
    made = together({"prompt": partial(read_parts, prompt, form.tools, values), **reads})
    parts = made.pop("prompt")
    responses = [None if chat is None else (place, chat) for place, chat in made.items()]
    return responses, partial(paired, parts.get("prompt"), parts["tools"])


def _read(place: str, completion: Any) -> Chat | None:
    """Returns a response of a ranking in messages; None where it says nothing."""
    if isinstance(completion, list):
        chat = read_turns(place, completion)
    else:
        chat = text_part("completion", completion) if _is_text(completion) else Chat([])
    return chat if any(map(is_answer, chat.messages)) else None


def _same_kind(are_lists: Sequence[bool], where: str) -> None:
    if len(set(are_lists)) > 1:
        raise ScaleupError.of(where, "holds text beside messages", "write all responses as text, or all as messages")


def paired(prompt: Chat | None, tools: list[dict[str, Any]] | None, chosen: Named, rejected: Named) -> Preference:
    """Returns two responses, each with its place in the row, after their prompt. A prompt that both of them repeat is
    cut off them; where none is given, it is the turns that both begin with.

    Raises ScaleupError where the assistant does not go on in both of them."""
    one, other = chosen[1].messages, rejected[1].messages
    if prompt is not None and prompt.messages:
        start = prompt.messages
        num_shared = len(start) if one[: len(start)] == other[: len(start)] == start else 0
    else:
        num_shared = _num_shared(chosen, rejected)
        start = one[:num_shared]
    problems = []
    for name, response in (chosen, rejected):
        problems += response_faults(name, Chat(response.messages[num_shared:]))
        for at in sorted(at for at in response.unlearned if at >= num_shared):
            what = "has weight 0 or train false, which means nothing in a preference"
            problems.append(Problem(f"{name}[{at}]", what, "leave it out"))
    if problems:
        raise ScaleupError(problems)
    return Preference(Chat(start, tools), one[num_shared:], other[num_shared:])


def _num_shared(chosen: Named, rejected: Named) -> int:
    """Returns with how many turns both begin, and raises ScaleupError where that is not all before the answers."""
    one, other = chosen[1].messages, rejected[1].messages
    at = sum(1 for _ in takewhile(lambda both: both[0] == both[1], zip(one, other, strict=False)))
    if at < min(len(one), len(other)) and not one[at]["role"] == other[at]["role"] == "assistant":
        what = f"has another prompt than {chosen[0]}"
        raise ScaleupError.of(f"{rejected[0]}[{at}]", what, "let both begin with the same turns, up to the answer")
    if at == min(len(one), len(other)):
        longer, shorter = sorted((chosen, rejected), key=lambda named: -len(named[1].messages))
        what = f"goes on where {shorter[0]} has ended"
        raise ScaleupError.of(f"{longer[0]}[{at}]", what, "let both begin with the same turns, up to the answer")
    return at


def _column(form: RowFormat, key: str) -> str:
    column = getattr(form, key)
    assert column is not None, "the format has been looked at"
    return str(column)


def _margin(form: RowFormat, values: Values) -> float:
    return 0.0 if form.margin is None else number_of(form.margin, values)


def _as_number(value: Any, form: RowFormat, key: str) -> float:
    number = number_in(value)
    if number is None:
        raise ScaleupError.of(_column(form, key), f"holds {value!r}, which is no number", "give numbers, or null")
    return number


def _is_text(completion: Any) -> bool:
    return isinstance(completion, str) and bool(completion.strip())


def reasons(left_out: Mapping[str, int]) -> Iterator[str]:
    """Yields each reason with its count, for a sentence: `3 tied`."""
    return (f"{count} {reason}" for reason, count in sorted(left_out.items()) if count)
