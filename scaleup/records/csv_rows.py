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


def csv_file(file: Path, listener: Listener, delimiter: str = ",") -> Iterator[Row]:
    """Yields the records under the header. A first column without a name, the index that pandas writes, is left
    aside."""
    records = _records(file, listener, delimiter)
    where, header = next(records, ("", None))
    if header is None:
        return
    first = 1 if len(header) > 1 and not header[0].strip() else 0
    if problem := header_problem(where, header[first:]):
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
            remedy = f"put quotes around fields that hold {'tabs' if delimiter != ',' else 'commas'} or line breaks"
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
                listener.problem(Problem(where, f"is not valid CSV: {error}", "mend its quotes"))
                yield where, None
                continue
            if not is_utf8("".join(fields)):
                listener.problem(not_utf8(where))
                yield where, None
            elif fields:
                yield where, fields
