"""Readers of JSON files: one object a line, or one array of objects."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from scaleup.errors import Problem
from scaleup.records.json_array import ArraySyntaxError, RowDecoder, array_items
from scaleup.records.rows import Listener, Row
from scaleup.records.text_files import is_utf8, open_text

MOST_CHARACTERS = 1 << 26
"""Bounds a line: a few kilobytes of a compressed file may hold one that fills the memory."""


def json_lines(file: Path, listener: Listener) -> Iterator[Row]:
    name, decoder = str(file), RowDecoder()
    with open_text(file) as lines:
        for number, line in enumerate(iter(partial(lines.readline, MOST_CHARACTERS + 1), ""), 1):
            if line.isspace():
                continue
            where = f"{name}:{number}"
            if len(line) > MOST_CHARACTERS:
                what = f"has more than {MOST_CHARACTERS} characters"
                listener.problem(Problem(where, what, "split the row; no row after it is read"))
                return
            if not is_utf8(line):
                listener.problem(not_utf8(where))
                continue
            try:
                value = decoder.decode(line)
            except (ValueError, RecursionError) as error:
                detail = f"{error.msg} (column {error.colno})" if isinstance(error, json.JSONDecodeError) else error
                listener.problem(Problem(where, f"is not valid JSON: {detail}", "write one JSON object a line"))
                continue
            if isinstance(value, dict) and not decoder.doubled:
                yield Row(where, value)
            else:
                listener.problem(_no_row(where, value, decoder))


def json_file(file: Path, listener: Listener) -> Iterator[Row]:
    """Yields the rows of one array of objects, or of JSON lines: the first character tells."""
    with open_text(file) as text:
        while (first := text.read(1)).isspace():
            pass
        begin = first + text.readline(MOST_CHARACTERS)
        is_spread = first == "{" and len(begin) <= MOST_CHARACTERS and _is_opened(begin)
    name, decoder = str(file), RowDecoder()
    if is_spread:
        what = "begins with an object over several lines, and is neither an array nor JSON lines"
        listener.problem(Problem(name, what, "write the rows as one array, [{...}, {...}], or one object a line"))
        return
    if first != "[":
        yield from json_lines(file, listener)
        return
    with open_text(file) as text:
        try:
            for line, raw, value in array_items(text, decoder):
                where = f"{name}:{line}"
                if not is_utf8(raw):
                    listener.problem(not_utf8(where))
                elif isinstance(value, dict) and not decoder.doubled:
                    yield Row(where, value)
                else:
                    listener.problem(_no_row(where, value, decoder))
        except ArraySyntaxError as error:
            what = f"is not valid JSON: {error}"
            listener.problem(Problem(f"{name}:{error.line}", what, "mend it; no row after it is read"))


def _is_opened(line: str) -> bool:
    """Returns whether a line is the begin of an object that goes on behind it."""
    try:
        json.loads(line)
    except json.JSONDecodeError as error:
        return error.pos >= len(line.rstrip())
    except (ValueError, RecursionError):
        pass
    return False


def not_utf8(where: str) -> Problem:
    return Problem(where, "is not valid UTF-8", "save the file as UTF-8")


def _no_row(where: str, value: Any, decoder: RowDecoder) -> Problem:
    if not isinstance(value, dict):
        return Problem(where, "is not a JSON object", 'a row looks like {"column": "value"}')
    names = ", ".join(map(repr, sorted(decoder.doubled)))
    return Problem(where, f"names {names} twice in one object", "keep one of them")
