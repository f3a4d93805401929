"""What a chat template marks as the assistant's (`{% generation %}`) goes in; what of that is learned comes out."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

from scaleup.data.rendering import PROBE, Renderer
from scaleup.data.text import Span, num_common
from scaleup.data.tool_calls import altered_call, text_with
from scaleup.errors import ScaleupError
from scaleup.records.chats import REASONING_KEYS, Chat, Message

ENDS = re.compile(r"(?:<[^<>]+>|\[[^\[\]]+\]|\s)+\Z")
"""Markers that a text ends with."""


@dataclass(frozen=True)
class Rendered:
    """Holds the text of a conversation and what of it is learned."""

    text: str
    spans: tuple[Span, ...]
    num_rewritten: int = 0
    """Answers that are not learned: once the conversation goes on, the template shows them otherwise than they were
    given."""
    num_refused: int = 0
    """Answers that are not learned: the template takes them only with what follows them."""
    num_altered: int = 0
    """Messages of which the template does not show the words as they are."""
    silent: tuple[Span, ...] = ()
    """Characters that no token is learned by: what messages say that are read alone, where all others are learned."""


def marked(renderer: Renderer, chat: Chat, learned: Sequence[int]) -> Rendered:
    """Returns what the template itself marks as the answers that are learned.

    It is taken by its word, but for answers before the last whose words it marks otherwise than when they are given:
    these are not learned. Where it has only lost their reasoning, that is counted."""
    text, marks = renderer.tracked(chat.messages, chat.tools)
    turns = [turn for turn, message in enumerate(chat.messages) if message["role"] == "assistant"]
    first = [_first_mark(renderer, chat, turn, (text, marks)) for turn in turns]
    own = {turn: marks[start:end] for turn, start, end in zip(turns, first, [*first[1:], None], strict=True)}
    if not any(own[turn] for turn in learned):
        what = "the chat template marks nothing of the answers as the assistant's"
        raise ScaleupError.of("data.messages", what, "use data.train_on: all, or another data.chat_template")
    altered = {turn for turn, message in enumerate(chat.messages) if not _shows(text, message.get("content"))}
    altered |= {turn for turn in learned if not _shows(text, _reasoning(chat.messages[turn]))}
    everything, lost = "".join(_words(text, own[turn]) for turn in learned), set()
    for turn in learned[:-1]:
        given, shown = _given(renderer, chat, turn), _words(text, own[turn])
        content = chat.messages[turn].get("content")
        if _shows(given, content) and not _shows(shown or everything, content):
            lost.add(turn)
        elif given and ENDS.sub("", given) != ENDS.sub("", shown):
            altered.add(turn)
    spans = dict.fromkeys(mark for turn in learned if turn not in lost for mark in own[turn])
    return Rendered(text, tuple(spans), num_rewritten=len(lost), num_altered=len(altered - lost))


def said(renderer: Renderer, chat: Chat, turn: int, text: str) -> Span:
    """Returns the characters of a text that are others if a message says something else.

    Raises ScaleupError where the template does not take that."""
    start, end = len(text), 0
    for probe in (PROBE, PROBE[::-1]):  # of which one begins, and one ends, otherwise than the message does
        other = _saying(renderer, chat, turn, probe)
        begins = num_common(text, other)
        left = min(len(text), len(other)) - begins
        start, end = min(start, begins), max(end, len(text) - min(num_common(text[::-1], other[::-1]), left))
    return start, max(start, end)


def _saying(renderer: Renderer, chat: Chat, turn: int, words: str) -> str:
    """Returns the text of a conversation in which a message says other words; with other calls of tools in the place of
    its own, where results follow them."""
    message = chat.messages[turn]
    bare = {key: value for key, value in message.items() if key not in ("tool_calls", *REASONING_KEYS)}
    calls = [altered_call(call, arguments={words: words}) for call in message.get("tool_calls") or []]
    for more in ({}, {"tool_calls": [altered_call(call, name=words) for call in calls]}, {"tool_calls": calls}):
        with suppress(ScaleupError):
            return text_with(renderer, chat, turn, {**bare, "content": words, **more})
    what = f"messages[{turn}] has weight 0 or train false, and the chat template takes no other words in its place"
    raise ScaleupError.of("data.messages", what, "leave it out, or drop the row")


def num_altered(chat: Chat, text: str) -> int:
    """Returns how many messages have words that the text does not show as they are."""
    return sum(not _shows(text, message.get("content")) for message in chat.messages)


def _reasoning(message: Message) -> str:
    return next((message[key] for key in REASONING_KEYS if message.get(key)), "")


def _shows(text: str, words: str | None) -> bool:
    """Returns whether a text has words as they are, or as JSON text of them."""
    words = (words or "").strip()
    return words in text or json.dumps(words, ensure_ascii=False)[1:-1] in text


def _given(renderer: Renderer, chat: Chat, turn: int) -> str:
    """Returns what the template marks of an answer that is the last message; nothing if it refuses that."""
    until = replace(chat, messages=chat.messages[: turn + 1])
    try:
        text, marks = renderer.tracked(until.messages, until.tools)
        return _words(text, marks[_first_mark(renderer, until, turn, (text, marks)) :])
    except ScaleupError:
        return ""


def _first_mark(renderer: Renderer, chat: Chat, turn: int, tracked: tuple[str, list[Span]]) -> int:
    """Returns the number of the first mark of what the assistant says at a turn."""
    if all(message["role"] != "assistant" for message in chat.messages[:turn]):
        return 0
    text, marks = tracked
    place = _place(renderer, chat, turn, text)  # an empty mark holds where it is
    return next((at for at, (start, end) in enumerate(marks) if end > place or start == end == place), len(marks))


def _place(renderer: Renderer, chat: Chat, turn: int, text: str) -> int:
    """Returns where the text begins to be another one if what the assistant says at a turn is."""
    other: Message = {"role": "assistant", "content": PROBE}
    calls = chat.messages[turn].get("tool_calls")
    if not calls:
        return num_common(text_with(renderer, chat, turn, other), text)
    with suppress(ScaleupError):  # results of calls may be refused behind anything else, and names of no tool
        renamed = [altered_call(call, name=PROBE) for call in calls]
        return num_common(text_with(renderer, chat, turn, other | {"tool_calls": renamed}), text)
    altered = [altered_call(call, arguments={PROBE: PROBE}) for call in calls]
    return num_common(text_with(renderer, chat, turn, other | {"tool_calls": altered}), text)


def _words(text: str, marks: Sequence[Span]) -> str:
    return "".join(text[start:end] for start, end in marks)
