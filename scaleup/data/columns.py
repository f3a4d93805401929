"""Rows of tokens go in, and come out as columns of numbers, and back: how each kind of row lies in an Arrow file."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from scaleup.data.prompt_rows import PromptRow
from scaleup.data.tokenization import (
    IGNORE,
    LabelledTokens,
    PairTokens,
    PreferenceTokens,
    TargetTokens,
    Tokens,
    UnpairedTokens,
)


@dataclass(frozen=True)
class Lists:
    """Holds a list of numbers for each of R rows: all of them one after another, and how many each row has (R)."""

    values: np.ndarray
    lengths: np.ndarray

    @classmethod
    def of(cls, rows: Sequence[np.ndarray], kind: type = np.int32) -> Lists:
        return cls(joined(rows, kind), np.fromiter(map(len, rows), np.int64, len(rows)))


Columns = Mapping[str, Lists | np.ndarray]
"""Maps a column's name -> its R lists, or its R numbers."""
Cells = Mapping[str, Any]
"""Maps a column's name -> what one row has there: an array, a view of the file, or a number."""


def joined(arrays: Sequence[np.ndarray], kind: Any) -> np.ndarray:
    """Returns arrays one after another, also none."""
    return np.concatenate(arrays).astype(kind, copy=False) if arrays else np.empty(0, kind)


class Form(Protocol):
    """Says how one kind of row lies in columns."""

    @property
    def lists(self) -> Mapping[str, type]:
        """Maps the name of a column of lists -> the type of their numbers."""

    @property
    def numbers(self) -> Mapping[str, type]:
        """Maps the name of a column of numbers -> their type."""

    def columns(self, rows: Sequence[Any]) -> Columns: ...

    def row(self, cells: Cells) -> Any: ...

    def widths(self, lengths: Callable[[str], np.ndarray]) -> np.ndarray:
        """Returns what `batching.widths` does of all rows, of the lengths of lists by column."""


class CausalForm:
    """Lays out rows of a causal model. Labels are the token or IGNORE: what is learned is kept as runs, `from, to,
    from, to...`."""

    lists: Mapping[str, type] = {"input_ids": np.int32, "learned": np.int32}
    numbers: Mapping[str, type] = {}

    def columns(self, rows: Sequence[Tokens]) -> Columns:
        return {
            "input_ids": Lists.of([row.input_ids for row in rows]),
            "learned": runs_of([row.labels != IGNORE for row in rows]),
        }

    def row(self, cells: Cells) -> Tokens:
        input_ids = cells["input_ids"]
        labels = np.full(len(input_ids), IGNORE, np.int32)
        runs = cells["learned"].tolist()
        for first, end in zip(runs[::2], runs[1::2], strict=True):
            labels[first:end] = input_ids[first:end]
        return Tokens(input_ids, labels)

    def widths(self, lengths: Callable[[str], np.ndarray]) -> np.ndarray:
        return lengths("input_ids")[:, None]


class Seq2SeqForm:
    """Lays out rows of an encoder-decoder: its labels are a text of their own."""

    lists: Mapping[str, type] = {"input_ids": np.int32, "labels": np.int32}
    numbers: Mapping[str, type] = {}

    def columns(self, rows: Sequence[Tokens]) -> Columns:
        return {name: Lists.of([getattr(row, name) for row in rows]) for name in self.lists}

    def row(self, cells: Cells) -> Tokens:
        return Tokens(cells["input_ids"], cells["labels"])

    def widths(self, lengths: Callable[[str], np.ndarray]) -> np.ndarray:
        return np.stack([lengths(name) for name in self.lists], axis=1)


class PairForm:
    """Lays out pairs of which one is preferred."""

    lists: Mapping[str, type] = {"chosen": np.int32, "rejected": np.int32}
    numbers: Mapping[str, type] = {"margin": np.float64}

    def columns(self, rows: Sequence[PairTokens]) -> Columns:
        margins = np.array([row.margin for row in rows], np.float64)
        return {name: Lists.of([getattr(row, name) for row in rows]) for name in self.lists} | {"margin": margins}

    def row(self, cells: Cells) -> PairTokens:
        return PairTokens(cells["chosen"], cells["rejected"], float(cells["margin"]))

    def widths(self, lengths: Callable[[str], np.ndarray]) -> np.ndarray:
        longer = np.maximum(lengths("chosen"), lengths("rejected"))
        return np.stack([longer, longer], axis=1)


class PreferenceForm:
    """Lays out pairs of a language model: each side as a row of its own kind."""

    numbers: Mapping[str, type] = {}

    def __init__(self, side: Form) -> None:
        self._side = side
        self.lists: Mapping[str, type] = {f"{of}_{name}": kind for of in SIDES for name, kind in side.lists.items()}

    def columns(self, rows: Sequence[PreferenceTokens]) -> Columns:
        sides = {of: self._side.columns([getattr(row, of) for row in rows]) for of in SIDES}
        return {f"{of}_{name}": column for of, columns in sides.items() for name, column in columns.items()}

    def row(self, cells: Cells) -> PreferenceTokens:
        sides = [{name: cells[f"{of}_{name}"] for name in self._side.lists} for of in SIDES]
        return PreferenceTokens(*(self._side.row(side) for side in sides))

    def widths(self, lengths: Callable[[str], np.ndarray]) -> np.ndarray:
        one, other = (self._side.widths(lambda name, of=of: lengths(f"{of}_{name}")) for of in SIDES)  # type: ignore[misc]
        return 2 * np.maximum(one, other)


class UnpairedForm:
    """Lays out responses that are desirable or not: each as a row of its own kind."""

    numbers: Mapping[str, type] = {"is_desirable": np.int8}

    def __init__(self, response: Form) -> None:
        self._response = response
        self.lists = response.lists

    def columns(self, rows: Sequence[UnpairedTokens]) -> Columns:
        columns = self._response.columns([row.response for row in rows])
        return {**columns, "is_desirable": np.array([row.is_desirable for row in rows], np.int8)}

    def row(self, cells: Cells) -> UnpairedTokens:
        return UnpairedTokens(self._response.row(cells), bool(cells["is_desirable"]))

    def widths(self, lengths: Callable[[str], np.ndarray]) -> np.ndarray:
        return self._response.widths(lengths)


class LabelledForm:
    """Lays out texts with a class."""

    lists: Mapping[str, type] = {"input_ids": np.int32}
    numbers: Mapping[str, type] = {"label": np.int64}

    def columns(self, rows: Sequence[LabelledTokens]) -> Columns:
        labels = np.array([row.label for row in rows], np.int64)
        return {"input_ids": Lists.of([row.input_ids for row in rows]), "label": labels}

    def row(self, cells: Cells) -> LabelledTokens:
        return LabelledTokens(cells["input_ids"], int(cells["label"]))

    def widths(self, lengths: Callable[[str], np.ndarray]) -> np.ndarray:
        return lengths("input_ids")[:, None]


class TargetForm:
    """Lays out texts with a number for each logit."""

    lists: Mapping[str, type] = {"input_ids": np.int32, "label": np.float32}
    numbers: Mapping[str, type] = {}

    def columns(self, rows: Sequence[TargetTokens]) -> Columns:
        labels = Lists.of([row.label for row in rows], np.float32)
        return {"input_ids": Lists.of([row.input_ids for row in rows]), "label": labels}

    def row(self, cells: Cells) -> TargetTokens:
        return TargetTokens(cells["input_ids"], cells["label"])

    def widths(self, lengths: Callable[[str], np.ndarray]) -> np.ndarray:
        return lengths("input_ids")[:, None]


class PromptForm:
    """Lays out prompts, with the rows that they were made of."""

    lists: Mapping[str, type] = {"ids": np.int32, "row": np.uint8}
    numbers: Mapping[str, type] = {"index": np.int64}

    def columns(self, rows: Sequence[PromptRow]) -> Columns:
        return {
            "ids": Lists.of([row.ids for row in rows]),
            "row": Lists.of([np.frombuffer(row.row, np.uint8) for row in rows], np.uint8),
            "index": np.array([row.index for row in rows], np.int64),
        }

    def row(self, cells: Cells) -> PromptRow:
        return PromptRow(cells["ids"], int(cells["index"]), cells["row"].tobytes())

    def widths(self, lengths: Callable[[str], np.ndarray]) -> np.ndarray:
        return lengths("ids")[:, None]


SIDES = ("chosen", "rejected")

FORMS: Mapping[str, Form] = {
    "causal": CausalForm(),
    "seq2seq": Seq2SeqForm(),
    "pairs": PairForm(),
    "preferences": PreferenceForm(CausalForm()),
    "seq2seq preferences": PreferenceForm(Seq2SeqForm()),
    "unpaired": UnpairedForm(CausalForm()),
    "seq2seq unpaired": UnpairedForm(Seq2SeqForm()),
    "labelled": LabelledForm(),
    "targets": TargetForm(),
    "prompts": PromptForm(),
}
"""Maps what a file calls its kind of rows -> how they lie in it."""


def form_name(row: Any, task: str) -> str:
    """Returns the name of the form of a row of a task."""
    if isinstance(row, PairTokens):
        return "pairs"
    if isinstance(row, PreferenceTokens):
        return "seq2seq preferences" if task == "seq2seq_lm" else "preferences"
    if isinstance(row, UnpairedTokens):
        return "seq2seq unpaired" if task == "seq2seq_lm" else "unpaired"
    if isinstance(row, LabelledTokens):
        return "labelled"
    if isinstance(row, TargetTokens):
        return "targets"
    if isinstance(row, PromptRow):
        return "prompts"
    return "seq2seq" if task == "seq2seq_lm" else "causal"


def runs_of(masks: Sequence[np.ndarray]) -> Lists:
    """Returns where each mask (S) is true, as runs: `from, to, from, to...`."""
    if not masks:
        return Lists(np.empty(0, np.int32), np.empty(0, np.int64))
    lengths = np.fromiter(map(len, masks), np.int64, len(masks))
    starts = np.cumsum(lengths + 1) - lengths - 1  # a place that is false stands behind each mask, so that runs end
    apart = np.zeros(int(lengths.sum()) + len(masks) + 1, np.int8)
    places = np.arange(int(lengths.sum())) + np.repeat(np.arange(len(masks)), lengths)
    apart[places + 1] = np.concatenate(masks)
    edges = np.flatnonzero(np.diff(apart))
    of_row = np.searchsorted(starts, edges, side="right") - 1
    counts = np.bincount(of_row, minlength=len(masks))
    return Lists((edges - starts[of_row]).astype(np.int32), counts.astype(np.int64))
