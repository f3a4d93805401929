"""Readers of row files: finding them, and reading them one row at a time, each with the line it is on."""

from __future__ import annotations

import csv
import difflib
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, TextIO

from scaleup.config.schema import DataConfig, SourceConfig
from scaleup.errors import Problem, ScaleupError
from scaleup.records.json_array import ArraySyntaxError, array_items

SUFFIXES = (".jsonl", ".json", ".csv", ".parquet")
HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")
MAX_CSV_FIELD = 1 << 26
PARQUET_BATCH = 1000

Report = Callable[[Problem], None]


@dataclass(frozen=True)
class Row:
    """Holds one row of a file: where it is, e.g. `reviews/train.jsonl:12`, and its columns."""

    where: str
    values: dict[str, Any]


def local_path(data: DataConfig, source: SourceConfig) -> Path | None:
    """Returns the file or folder that a source means, whether it exists or not; None when it is a `datasets` hub
    name."""
    path = _expanded(data.root) / _expanded(source.path)
    try:
        exists = path.exists()
    except OSError:  # there, in a folder that may not be searched
        exists = True
    if exists or path.suffix.lower() in SUFFIXES or source.path.startswith(("/", "./", "../", "~")):
        return path
    return None if HUB_NAME.fullmatch(source.path) else path


def data_files(path: Path) -> list[Path]:
    """Returns the file itself, or the data files directly in a folder by name. Raises ScaleupError when there is
    none."""
    suffixes = ", ".join(SUFFIXES)
    try:
        if path.is_dir():
            files = sorted(file for file in path.iterdir() if _is_data_file(file))
            if not files:
                raise ScaleupError.of(str(path), "is a folder without data files", f"it needs files named {suffixes}")
            return files
        if path.is_file():
            if path.suffix.lower() not in SUFFIXES:
                raise ScaleupError.of(str(path), "is no file of a known kind", f"name it {suffixes}")
            return [path]
        near = difflib.get_close_matches(path.name, [other.name for other in path.parent.glob("*")], n=1)
    except OSError as error:
        raise ScaleupError.of(
            str(path), f"cannot be read: {error.strerror}", "see to the file and its permissions"
        ) from None
    remedy = f"did you mean '{near[0]}'?" if near else "relative paths start from data.root"
    raise ScaleupError.of(str(path), "does not exist", remedy)


def read_rows(path: Path, on_error: Report | None = None) -> Iterator[Row]:
    """Yields the rows of a file or folder lazily. A bad line raises ScaleupError; with `on_error` it is reported there
    instead, and reading goes on where it can."""
    report = on_error or _raise
    for file in data_files(path):
        try:
            yield from READERS[file.suffix.lower()](file, report)
        except OSError as error:
            report(
                Problem(str(file), f"cannot be read: {error.strerror or error}", "see to the file and its permissions")
            )


def _raise(problem: Problem) -> NoReturn:
    raise ScaleupError(problem)


def _expanded(path: str) -> Path:
    try:
        return Path(path).expanduser()
    except RuntimeError:  # `~name` of an unknown user: reported later as a path that does not exist
        return Path(path)


def _is_data_file(file: Path) -> bool:
    return file.suffix.lower() in SUFFIXES and not file.name.startswith(".") and file.is_file()


def _open(file: Path, newline: str) -> TextIO:
    # Bytes that are not UTF-8 become lone surrogates here, so that one bad line does not end the reading of the rest.
    return file.open(encoding="utf-8-sig", errors="surrogateescape", newline=newline)


def _is_utf8(text: str) -> bool:
    try:
        return text.isascii() or bool(text.encode())
    except UnicodeEncodeError:
        return False


def _not_utf8(where: str) -> Problem:
    return Problem(where, "is not valid UTF-8", "save the file as UTF-8")


def _json_row(where: str, value: Any, report: Report) -> Iterator[Row]:
    if not isinstance(value, dict):
        report(Problem(where, "is not a JSON object", 'a row looks like {"column": "value"}'))
    else:
        yield Row(where, value)


def _json_lines(file: Path, report: Report) -> Iterator[Row]:
    name = str(file)
    with _open(file, newline="\n") as lines:
        for number, line in enumerate(lines, 1):
            if line.isspace():
                continue
            where = f"{name}:{number}"
            if not _is_utf8(line):
                report(_not_utf8(where))
                continue
            try:
                value = json.loads(line)
            except (ValueError, RecursionError) as error:
                detail = f"{error.msg} (column {error.colno})" if isinstance(error, json.JSONDecodeError) else error
                report(Problem(where, f"is not valid JSON: {detail}", "write one JSON object a line"))
                continue
            yield from _json_row(where, value, report)


def _json(file: Path, report: Report) -> Iterator[Row]:
    """Yields the rows of one array of objects, or of JSON lines: the first character tells."""
    with _open(file, newline="\n") as text:
        while (first := text.read(1)).isspace():
            pass
    if first != "[":
        yield from _json_lines(file, report)
        return
    name = str(file)
    with _open(file, newline="\n") as text:
        try:
            for line, raw, value in array_items(text):
                where = f"{name}:{line}"
                if _is_utf8(raw):
                    yield from _json_row(where, value, report)
                else:
                    report(_not_utf8(where))
        except ArraySyntaxError as error:
            report(Problem(f"{name}:{error.line}", f"is not valid JSON: {error}", "mend it; no row after it is read"))


def _csv(file: Path, report: Report) -> Iterator[Row]:
    records = _csv_records(file, report)
    where, header = next(records, ("", None))
    if header is None:
        return
    if problem := _header_problem(where, header):
        report(problem)
        return
    for where, fields in records:
        if fields is None:
            continue
        if len(fields) == len(header):
            yield Row(where, dict(zip(header, fields, strict=True)))
        else:
            what = f"its number of fields is {len(fields)}, the header's {len(header)}"
            report(Problem(where, what, "put quotes around fields that hold commas or line breaks"))


def _csv_records(file: Path, report: Report) -> Iterator[tuple[str, list[str] | None]]:
    """Yields where each record starts, and its fields or, when they cannot be read and that was reported, None."""
    csv.field_size_limit(MAX_CSV_FIELD)
    with _open(file, newline="") as lines:
        reader = csv.reader(lines, strict=True)
        while True:
            where = f"{file}:{reader.line_num + 1}"
            try:
                fields = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                report(Problem(where, f"is not valid CSV: {error}", "mend its quotes"))
                yield where, None
                continue
            if not _is_utf8("".join(fields)):
                report(_not_utf8(where))
                yield where, None
            elif fields:
                yield where, fields


def _header_problem(where: str, names: list[str]) -> Problem | None:
    if not all(name.strip() for name in names):
        return Problem(where, "the header has an empty column name", "name every column")
    if doubled := sorted({name for name in names if names.count(name) > 1}):
        return Problem(
            where, f"the header names {', '.join(map(repr, doubled))} twice", "give each column its own name"
        )
    return None


def _parquet(file: Path, report: Report) -> Iterator[Row]:
    import pyarrow
    from pyarrow.parquet import ParquetFile

    name, number = str(file), 0
    try:
        with ParquetFile(file) as table:
            if problem := _header_problem(name, table.schema_arrow.names):
                report(problem)
                return
            for batch in table.iter_batches(batch_size=PARQUET_BATCH):
                for values in batch.to_pylist():
                    number += 1
                    yield Row(f"{name}:row {number}", values)
    except (pyarrow.ArrowException, ValueError, OverflowError) as error:
        where = f"{name}:row {number + 1}" if number else name
        report(Problem(where, f"is not readable Parquet: {error}", "write the file anew"))


READERS: dict[str, Callable[[Path, Report], Iterator[Row]]] = {
    ".jsonl": _json_lines,
    ".json": _json,
    ".csv": _csv,
    ".parquet": _parquet,
}
