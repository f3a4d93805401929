"""This module counts what of a source's conversations may not be meant as it stands, for the plan's notes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from scaleup.records.chats import KNOWN_KEYS, Chat, Message
from scaleup.records.preferences import Preferences


class ChatNotes:
    """Counts keys that only a chat template may know, and nulls that it would show."""

    def __init__(self) -> None:
        self._unknown_keys: Counter[str] = Counter()
        self._num_with_nulls = 0
        self._num_without_chat = 0

    def add(self, made: Any, tools: Any = None) -> None:
        """Adds what was made of a row, which has `tools` in a column."""
        if tools and tools != "[]" and not _is_chat(made):
            self._num_without_chat += 1
        if not isinstance(made, (Chat, Preferences)):
            return
        messages, tools = _parts(made)
        for message in messages:
            self._unknown_keys.update(message.keys() - KNOWN_KEYS)
        calls = [message["tool_calls"] for message in messages if "tool_calls" in message]
        self._num_with_nulls += _holds_null(calls) or _holds_null(tools)

    def lines(self, where: str) -> Iterator[str]:
        """Yields the notes on the source at the config key `where`."""
        for key, count in sorted(self._unknown_keys.items()):
            have = "1 message has" if count == 1 else f"{count} messages have"
            yield f"{where}: {have} the key '{key}', which only the chat template may read"
        if count := self._num_with_nulls:
            have = "1 row has" if count == 1 else f"{count} rows have"
            why = "Parquet writes them where a key is missing, JSON text does not"
            yield f"{where}: {have} nulls in tools or their calls, which the chat template shows ({why})"
        if count := self._num_without_chat:
            have = "1 row has" if count == 1 else f"{count} rows have"
            yield f"{where}: {have} tools beside text, which no chat template shows: they are not read"


def _is_chat(made: Any) -> bool:
    """Returns whether tools beside what was made of a row are shown; so they are where nothing could be made."""
    if isinstance(made, Preferences):
        return not made.pairs or isinstance(made.pairs[0].prompt, Chat)
    return made is None or isinstance(made, Chat)


def _parts(made: Chat | Preferences) -> tuple[Collection[Message], Any]:
    """Returns the messages that were read of a row, each once, and its tools."""
    if isinstance(made, Chat):
        return made.messages, made.tools
    parts: list[Any] = []
    tools = None
    for pair in made.pairs:
        if isinstance(pair.prompt, Chat):
            parts += [pair.prompt.messages, pair.chosen, pair.rejected]
            tools = pair.prompt.tools
    return {id(message): message for part in parts for message in part}.values(), tools


def _holds_null(value: Any) -> bool:
    if isinstance(value, Mapping):
        return any(held is None or _holds_null(held) for held in value.values())
    return isinstance(value, list) and any(held is None or _holds_null(held) for held in value)
