"""A reader of CSV and TSV files: records under a header, in which everything is text."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

from scaleup.errors import Problem
from scaleup.records.json_rows import not_utf8
from scaleup.records.rows import Listener, Row
from scaleup.records.text_files import is_utf8, open_text

MAX_FIELD = 1 << 26
SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "vertical bars"}
"""Maps what stands between the fields of a file -> its name."""


def csv_file(file: Path, listener: Listener, delimiter: str = ",") -> Iterator[Row]:
    """Yields the records under the header. A first column without a name, the index that pandas writes, is left
    aside."""
    records = _records(file, listener, delimiter)
    where, header = next(records, ("", None))
    if header is None:
        return
    first = 1 if len(header) > 1 and not header[0].strip() else 0
    if problem := header_problem(where, header[first:]) or _separator_problem(where, header, delimiter):
        listener.problem(problem)
        return
    if first:
        listener.note(f"{file}: the first column has no name: it is taken for an index, and not read")
    for where, fields in records:
        if fields is None:
            continue
        if len(fields) == len(header):
            yield Row(where, dict(zip(header[first:], fields[first:], strict=True)))
        else:
            what = f"its number of fields is {len(fields)}, the header's {len(header)}"
            remedy = f"put quotes around fields that hold {SEPARATORS[delimiter]} or line breaks"
            listener.problem(Problem(where, what, remedy))


def tsv_file(file: Path, listener: Listener) -> Iterator[Row]:
    return csv_file(file, listener, "\t")


def header_problem(where: str, names: list[str]) -> Problem | None:
    if not all(name.strip() for name in names):
        return Problem(where, "the header has an empty column name", "name every column")
    if doubled := sorted({name for name in names if names.count(name) > 1}):
        what = f"the header names {', '.join(map(repr, doubled))} twice"
        return Problem(where, what, "give each column its own name")
    return None


def _separator_problem(where: str, header: list[str], delimiter: str) -> Problem | None:
    """Returns the refusal of a header that is one field and has other separators in it: all of its columns would be
    one, and so would those of its rows that have no comma in a text."""
    others = [other for other in SEPARATORS if other != delimiter and other in header[0]]
    if len(header) > 1 or not others:
        return None
    found = max(others, key=header[0].count)
    what = f"the header {header[0]!r} is one column: {SEPARATORS[found]} stand in it, not {SEPARATORS[delimiter]}"
    ending = {",": "let its name end in .csv", "\t": "let its name end in .tsv"}
    return Problem(where, what, ending.get(found, f"write {SEPARATORS[delimiter]} between the columns"))


def _records(file: Path, listener: Listener, delimiter: str) -> Iterator[tuple[str, list[str] | None]]:
    """Yields where each record starts, and its fields or, when they cannot be read and that was reported, None."""
    csv.field_size_limit(MAX_FIELD)
    with open_text(file, newline="") as lines:
        reader = csv.reader(lines, strict=True, delimiter=delimiter)
        while True:
            where = f"{file}:{reader.line_num + 1}"
            try:
                fields = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                listener.problem(_csv_problem(where, error))
                yield where, None
                continue
            if not is_utf8("".join(fields)):
                listener.problem(not_utf8(where))
                yield where, None
            elif fields:
                yield where, fields


def _csv_problem(where: str, error: csv.Error) -> Problem:
    if "field larger than" in str(error):
        what = f"has a field of more than {MAX_FIELD >> 20} MiB"
        return Problem(where, what, "close its quote if one is left open; write fields of this size as JSON lines")
    return Problem(where, f"is not valid CSV: {error}", "mend its quotes")
