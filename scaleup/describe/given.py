"""Conversations go in; how many of them lose answers that no other row gives comes out."""

from __future__ import annotations

from collections.abc import Sequence

from scaleup.records.chats import Chat, Message


class Given:
    """Remembers what answers the rows of a source end with, and those that only later turns are learned of: rows may
    have been split already, so that each answer is the last of one of them."""

    def __init__(self) -> None:
        self._last: set[int] = set()
        self._earlier: list[list[int]] = []

    def add(self, chat: Chat, is_rewritten: bool) -> None:
        """Adds a row; `is_rewritten`: the template shows earlier answers otherwise than they were given."""
        *earlier, last = chat.answers
        self._last.add(_mark(chat.messages[: last + 1]))
        if is_rewritten:
            self._earlier.append([_mark(chat.messages[: turn + 1]) for turn in earlier])

    def num_lost(self) -> int:
        """Returns the rows with an earlier answer that is the last of no row."""
        return sum(not self._last.issuperset(marks) for marks in self._earlier)


def _mark(messages: Sequence[Message]) -> int:
    return hash(repr(messages))
