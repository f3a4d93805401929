"""A JSON array read item by item, so that a file of any size takes the memory of its largest item."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from typing import Any, TextIO

from scaleup.records.rows import Unreadable

CHUNK = 1 << 16
SPACE = re.compile(r"[ \t\r\n]*")
LONGEST_TOKEN = 16
"""Of what a chunk may end in the middle of, strings aside: a keyword, a number's sign, an escape."""

MAX_DIGITS = sys.get_int_max_str_digits()


class RowDecoder(json.JSONDecoder):
    """Reads JSON, and keeps in `doubled` the keys that an object of the last value has more than once."""

    def __init__(self) -> None:
        super().__init__(object_pairs_hook=self._object, parse_int=_integer)
        self.doubled: set[str] = set()

    def raw_decode(self, s: str, idx: int = 0) -> tuple[Any, int]:
        if self.doubled:
            self.doubled.clear()
        return super().raw_decode(s, idx)

    def _object(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        made = dict(pairs)
        if len(made) < len(pairs):
            names = [name for name, _ in pairs]
            self.doubled.update(name for name in made if names.count(name) > 1)
        return made


def _integer(digits: str) -> int | Unreadable:
    try:
        return int(digits)
    except ValueError:  # more digits than Python reads
        return Unreadable(f"holds an integer of {len(digits.lstrip('-'))} digits, of which Python reads {MAX_DIGITS}")


class ArraySyntaxError(Exception):
    """Tells that the text is no JSON array from this line on."""

    def __init__(self, line: int, what: str) -> None:
        super().__init__(what)
        self.line = line


def array_items(file: TextIO, decoder: RowDecoder) -> Iterator[tuple[int, str, Any]]:
    """Yields line, text and value of each item of the file's one array."""
    window = _Window(file, decoder)
    window.take("[")
    following = window.take("]") if window.peek() == "]" else ","
    while following == ",":
        window.peek()
        line = window.line
        yield line, *window.value()
        following = window.take(",]")
    if window.peek():
        raise ArraySyntaxError(window.line, "something follows the array")


class _Window:
    """Holds the part of a file that is in memory: all before `at` is done with."""

    def __init__(self, file: TextIO, decoder: RowDecoder) -> None:
        self.file, self.decoder = file, decoder
        self.text = ""
        self.at = 0
        self.line = 1

    def peek(self) -> str:
        """Returns the next character that is no space, or '' at the end."""
        while True:
            self._move(SPACE.match(self.text, self.at).end())  # type: ignore[union-attr]  # it matches anywhere
            if self.at < len(self.text) or not self._fill():
                return self.text[self.at : self.at + 1]

    def take(self, expected: str) -> str:
        character = self.peek()
        if not character or character not in expected:
            raise ArraySyntaxError(self.line, f"{' or '.join(map(repr, expected))} should stand here")
        self._move(self.at + 1)
        return character

    def value(self) -> tuple[str, Any]:
        """Returns the value that starts here. An item of many chunks is tried again at each doubling of the window
        only."""
        while True:
            try:
                value, end = self.decoder.raw_decode(self.text, self.at)
                if end < len(self.text) or not self._fill():
                    break
            except json.JSONDecodeError as error:
                cut_off = error.msg.startswith("Unterminated string") or error.pos > len(self.text) - LONGEST_TOKEN
                line = self.line + self.text.count("\n", self.at, error.pos)
                if not cut_off or not self._fill():
                    raise ArraySyntaxError(line, error.msg) from None
            except (ValueError, RecursionError) as error:
                raise ArraySyntaxError(self.line, str(error)) from None
        raw = self.text[self.at : end]
        self._move(end)
        return raw, value

    def _move(self, to: int) -> None:
        self.line += self.text.count("\n", self.at, to)
        self.at = to

    def _fill(self) -> bool:
        more = self.file.read(max(CHUNK, len(self.text) - self.at))
        if more:
            self.text, self.at = self.text[self.at :] + more, 0
        return bool(more)
