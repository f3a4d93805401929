"""Sequences of rows that hold none: some rows of others, or several one after another. Lengths are known without the
rows."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any, overload

import numpy as np

from scaleup.data.tokenization import (
    LabelledTokens,
    PairTokens,
    PreferenceTokens,
    TargetTokens,
    TokenRow,
    UnpairedTokens,
)

Rows = Sequence[Any]
"""Holds rows of one type."""


def widths_of(rows: Rows, task: str) -> np.ndarray:
    """Returns the tokens of each row in each tensor that is padded: (rows, 1) of causal models and classifiers, (rows,
    2) of encoder-decoders and pairs, whose two texts are padded alike. They follow from the file where the rows are in
    one."""
    known = getattr(rows, "widths", None)
    if known is not None:
        return np.asarray(known)
    if isinstance(rows, Chosen):
        return widths_of(rows.rows, task)[rows.places]
    if isinstance(rows, Changed):
        return widths_of(rows.rows, task)
    if isinstance(rows, Joined):
        return np.concatenate([widths_of(part, task) for part in rows.parts if len(part)])
    return np.array([_widths(row, task) for row in rows])


def _widths(row: TokenRow, task: str) -> tuple[int, ...]:
    if isinstance(row, PairTokens):
        return (max(len(row.chosen), len(row.rejected)),) * 2
    if isinstance(row, PreferenceTokens):
        sides = zip(_widths(row.chosen, task), _widths(row.rejected, task), strict=True)
        return tuple(2 * max(both) for both in sides)
    if isinstance(row, UnpairedTokens):
        return _widths(row.response, task)
    if isinstance(row, LabelledTokens | TargetTokens) or task != "seq2seq_lm":
        return (len(row.input_ids),)
    return len(row.input_ids), len(row.labels)


class View(Sequence[Any]):
    """Finds rows elsewhere."""

    def row(self, place: int) -> Any:
        """Returns the row at a place that is there."""
        raise NotImplementedError

    @overload
    def __getitem__(self, place: int) -> Any: ...
    @overload
    def __getitem__(self, place: slice) -> list[Any]: ...
    def __getitem__(self, place: int | slice) -> Any:
        if isinstance(place, slice):
            return [self.row(at) for at in range(*place.indices(len(self)))]
        return self.row(range(len(self))[place])


class Chosen(View):
    """Holds the rows at some places of others."""

    def __init__(self, rows: Rows, places: np.ndarray) -> None:
        self.rows, self.places = rows, places

    def __len__(self) -> int:
        return len(self.places)

    def row(self, place: int) -> Any:
        return self.rows[int(self.places[place])]


class Changed(View):
    """Holds rows of others, to each of which something is added when it is read: `change` gets it with its place. It
    has as many tokens then as before."""

    def __init__(self, rows: Rows, change: Callable[[Any, int], Any]) -> None:
        self.rows, self._change = rows, change

    def __len__(self) -> int:
        return len(self.rows)

    def row(self, place: int) -> Any:
        return self._change(self.rows[place], place)


class Joined(View):
    """Holds several sequences of rows, one after another."""

    def __init__(self, parts: Sequence[Rows]) -> None:
        self.parts = list(parts)
        self._ends = list(accumulate(map(len, self.parts)))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def row(self, place: int) -> Any:
        part = bisect_right(self._ends, place)
        return self.parts[part][place - (self._ends[part - 1] if part else 0)]
