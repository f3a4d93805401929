"""This module tells by the columns of a file's first row which format its rows have, where no config says it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from scaleup.config.data import DataConfig, RowFormat, RowKind, SourceConfig
from scaleup.errors import Problem, ScaleupError
from scaleup.records.alpaca import ALPACA, FIELDS, NEEDED
from scaleup.records.formats import data_files, local_path, read_rows
from scaleup.records.values import messages_in

NUM_FILES_KEPT = 64
UNPAIRED: RowKind = "unpaired preferences"


@dataclass(frozen=True)
class Recognised:
    """Holds a format that a file's columns tell of, and how to say so."""

    form: RowFormat
    kind: RowKind
    columns: str

    def __str__(self) -> str:
        return f"read as {self.kind} (columns {self.columns})"


def columns_of(data: DataConfig, source: SourceConfig) -> tuple[str, ...]:
    """Returns the columns of a local source's first row; none where it cannot be read."""
    return tuple(map(str, _first_row(data, source)))


def recognised(data: DataConfig, source: SourceConfig) -> Recognised | None:
    """Returns the one format that the columns of a local source's first row fit; of several the one that the stage
    learns from. None if there is none, or still several."""
    found = _candidates(_first_row(data, source), data.is_judged)
    if len(found) > 1:
        wanted = data.wanted or frozenset(each.kind for each in found if each.kind != UNPAIRED)
        found = [each for each in found if each.kind in wanted]
    return found[0] if len(found) == 1 else None


def fitting(data: DataConfig, source: SourceConfig) -> list[str]:
    """Returns the formats that the columns of a local source's first row fit, as a user reads them."""
    return [f"{each.kind} ({each.columns})" for each in _candidates(_first_row(data, source), data.is_judged)]


def _candidates(row: Mapping[str, Any], is_judged: bool) -> list[Recognised]:
    found = []
    for column in ("messages", "conversations"):
        if keys := _keys_of_turns(row.get(column)):
            found.append(Recognised(RowFormat(messages=column), "conversations", f"{column}: {', '.join(keys)}"))
    if {"chosen", "rejected"} <= row.keys():
        found.append(_of_texts(row, "preferences", ("prompt", "chosen", "rejected")))
    if is_judged and {"prompt", "completions"} <= row.keys():
        form = RowFormat(prompt="{prompt}", completions="completions")
        found.append(Recognised(form, "preferences", "prompt, completions"))
    if {"prompt", "completion", "label"} <= row.keys():
        unpaired = _of_texts(row, UNPAIRED, ("prompt", "completion"))
        form = unpaired.form.model_copy(update={"label": "label"})
        found.append(replace(unpaired, form=form, columns="prompt, completion, label"))
    if {"prompt", "completion"} <= row.keys():
        found.append(_of_texts(row, "prompts and completions", ("prompt", "completion")))
    if set(NEEDED) <= row.keys():
        held = [field for field in FIELDS if field in row]
        found.append(Recognised(RowFormat(template=ALPACA), "instructions with answers", ", ".join(held)))
    if {"text", "label"} <= row.keys():
        found.append(Recognised(RowFormat(text="{text}", label="label"), "texts with a class", "text, label"))
    elif "text" in row and not set(NEEDED) <= row.keys():  # Alpaca's rows repeat themselves there
        found.append(_of_texts(row, "plain text", ("text",)))
    return found


def _of_texts(row: Mapping[str, Any], kind: RowKind, columns: Sequence[str]) -> Recognised:
    held = [column for column in columns if column in row]
    return Recognised(RowFormat.model_validate({column: f"{{{column}}}" for column in held}), kind, ", ".join(held))


def _keys_of_turns(value: Any) -> tuple[str, ...]:
    """Returns the keys that make a list one of messages, by its first; nothing if it is none."""
    first = (messages_in(value) or [None])[0]
    if not isinstance(first, Mapping):
        return ()
    return next((keys for keys in (("role", "content"), ("from", "value")) if keys[0] in first), ())


def _first_row(data: DataConfig, source: SourceConfig) -> Mapping[str, Any]:
    try:
        path = local_path(data, source, None)  # all splits have the same columns
        for file in [] if path is None else data_files(path):
            stat = file.stat()
            if row := _first_row_of(file, stat.st_mtime_ns, stat.st_size):
                return row
    except (ScaleupError, OSError):
        pass  # reported where all rows are read
    return {}


@lru_cache(maxsize=NUM_FILES_KEPT)
def _first_row_of(file: Path, changed: int, size: int) -> Mapping[str, Any]:
    """Returns the first row of a file as it was at a time. Lines that cannot be read are reported elsewhere."""

    def pass_over(problem: Problem) -> None:
        pass

    return next((row.values for row in read_rows(file, pass_over)), {})
