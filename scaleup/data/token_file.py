"""Rows of tokens in an Arrow file: written once, in batches of equally many rows, and mapped into memory by whoever
reads them. A row that nobody looks at takes no memory; lengths are known without their rows."""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, overload

import numpy as np

from scaleup.data.columns import FORMS, Columns, Lists

BATCH = 4096
"""Counts the rows of a record batch; only the last has fewer."""
LET_GO = 16
"""Counts the rows that are read before their pages are given back."""
FORM = b"scaleup.form"


class TokenWriter:
    """Writes rows to a file, in the order in which they come."""

    def __init__(self, file: Path, form: str) -> None:
        import pyarrow

        self._form = FORMS[form]
        number = pyarrow.from_numpy_dtype
        lists = [(name, pyarrow.large_list(number(kind))) for name, kind in self._form.lists.items()]
        numbers = [(name, number(kind)) for name, kind in self._form.numbers.items()]
        self._schema = pyarrow.schema([*lists, *numbers], metadata={FORM: form.encode()})
        self._writer = pyarrow.ipc.new_file(str(file), self._schema)
        self._waiting: list[Columns] = []
        self._num_waiting = 0
        self.num_rows = 0

    def add(self, columns: Columns, count: int) -> None:
        """Adds `count` rows."""
        self._waiting.append(columns)
        self._num_waiting += count
        self.num_rows += count
        if self._num_waiting >= BATCH:
            self._write(self._num_waiting // BATCH * BATCH)

    def close(self) -> None:
        if self._num_waiting:
            self._write(self._num_waiting)
        self._writer.close()

    def _write(self, count: int) -> None:
        """Writes so many of the waiting rows."""
        import pyarrow

        whole = _together(self._waiting)
        for first in range(0, count, BATCH):
            part = _part(whole, first, min(first + BATCH, count))
            arrays = [_array(part[name]) for name in self._schema.names]
            self._writer.write_batch(pyarrow.record_batch(arrays, schema=self._schema))
        self._num_waiting -= count
        self._waiting = [_part(whole, count, count + self._num_waiting)] if self._num_waiting else []


def _together(parts: Sequence[Columns]) -> Columns:
    whole: dict[str, Lists | np.ndarray] = {}
    for name, first in parts[0].items():
        columns: Any = [part[name] for part in parts]
        if isinstance(first, Lists):
            values, lengths = ([getattr(each, what) for each in columns] for what in ("values", "lengths"))
            whole[name] = Lists(np.concatenate(values), np.concatenate(lengths))
        else:
            whole[name] = np.concatenate(columns)
    return whole


def _part(columns: Columns, first: int, end: int) -> Columns:
    part: dict[str, Lists | np.ndarray] = {}
    for name, column in columns.items():
        if isinstance(column, Lists):
            starts = np.cumsum(column.lengths[:end])
            begin, stop = (int(starts[at - 1]) if at else 0 for at in (first, end))
            part[name] = Lists(column.values[begin:stop], column.lengths[first:end])
        else:
            part[name] = column[first:end]
    return part


def _array(column: Lists | np.ndarray) -> Any:
    import pyarrow

    if isinstance(column, Lists):
        offsets = np.concatenate([[0], np.cumsum(column.lengths)])
        return pyarrow.LargeListArray.from_arrays(pyarrow.array(offsets), pyarrow.array(column.values))
    return pyarrow.array(column)


@dataclass(frozen=True)
class _Lists:
    """Is a column of lists of a batch: views of the file."""

    values: np.ndarray
    offsets: np.ndarray

    def __getitem__(self, place: int) -> np.ndarray:
        return self.values[self.offsets[place] : self.offsets[place + 1]]


class TokenFile(Sequence[Any]):
    """Holds the rows of a file, which is mapped. `hold` is kept as long as they are: what keeps the file."""

    def __init__(self, file: Path, hold: Any = None) -> None:
        """Raises ValueError for a file that is damaged, OSError for one that is not there."""
        import pyarrow

        self._hold = hold
        self._num_read = 0
        try:
            with file.open("rb") as opened:
                self._map = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
            self._reader = pyarrow.ipc.open_file(pyarrow.BufferReader(pyarrow.py_buffer(self._map)))
            self._form = FORMS[self._reader.schema.metadata[FORM].decode()]
            self._batches: list[dict[str, Any] | None] = [None] * self._reader.num_record_batches
            last = len(self._batches) - 1
            self._num_rows = last * BATCH + self._reader.get_batch(last).num_rows
        except (pyarrow.ArrowException, ValueError, KeyError, IndexError, TypeError) as error:
            raise ValueError(f"is no file of tokens: {error}") from None

    def __len__(self) -> int:
        return self._num_rows

    @overload
    def __getitem__(self, place: int) -> Any: ...
    @overload
    def __getitem__(self, place: slice) -> list[Any]: ...
    def __getitem__(self, place: int | slice) -> Any:
        if isinstance(place, slice):
            return [self[at] for at in range(*place.indices(len(self)))]
        place = range(len(self))[place]
        self._num_read += 1
        if self._num_read % LET_GO == 0:
            self._let_go()
        columns = self._batch(place // BATCH)
        return self._form.row({name: column[place % BATCH] for name, column in columns.items()})

    def __iter__(self) -> Iterator[Any]:
        return (self[place] for place in range(len(self)))

    @cached_property
    def widths(self) -> np.ndarray:
        """Holds what `batching.widths` says of all rows, in int32."""
        return self._form.widths(self.lengths)

    def lengths(self, column: str) -> np.ndarray:
        """Returns how many numbers each row has in a column of lists."""
        counts = []
        for number in range(len(self._batches)):
            counts.append(np.diff(self._batch(number)[column].offsets).astype(np.int32))
            self._let_go()
        return np.concatenate(counts)

    def _let_go(self) -> None:
        """Gives the pages that were read back to the kernel, which keeps the file's for all processes. Each look at a
        row maps some sixteen pages around it, which would count as this process's until the whole file did."""
        self._map.madvise(mmap.MADV_DONTNEED)

    def _batch(self, number: int) -> dict[str, Any]:
        found = self._batches[number]
        if found is None:
            batch = self._reader.get_batch(number)
            found = {name: _viewed(batch.column(name)) for name in batch.schema.names}
            self._batches[number] = found
        return found


def _viewed(column: Any) -> Any:
    import pyarrow

    if pyarrow.types.is_large_list(column.type):
        return _Lists(column.values.to_numpy(), column.offsets.to_numpy())
    return column.to_numpy()
