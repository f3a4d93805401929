"""A JSON array read item by item, so that a file of any size takes the memory of its largest item."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, TextIO

DECODER = json.JSONDecoder()
CHUNK = 1 << 16
SPACE = re.compile(r"[ \t\r\n]*")
LONGEST_TOKEN = 16
"""Of what a chunk may end in the middle of, strings aside: a keyword, a number's sign, an escape."""


class ArraySyntaxError(Exception):
    """Tells that the text is no JSON array from this line on."""

    def __init__(self, line: int, what: str) -> None:
        super().__init__(what)
        self.line = line


def array_items(file: TextIO) -> Iterator[tuple[int, str, Any]]:
    """Yields line, text and value of each item of the file's one array."""
    window = _Window(file)
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

    def __init__(self, file: TextIO) -> None:
        self.file = file
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
                value, end = DECODER.raw_decode(self.text, self.at)
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
