"""A step's number goes in; this rank's micro-batches come out. The loader is stateless: which rows a step holds follows
from its number alone, whatever the number of processes or the accumulation, so one global batch split in any way is the
same batch."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from scaleup.data.batching import EpochPlanner, Units, deal, joined, padded
from scaleup.data.collate import Batch, Collator
from scaleup.data.order import MixtureOrder
from scaleup.data.rows import Rows, widths_of
from scaleup.data.sources import MapSource, Source
from scaleup.data.tokenization import FILLER, TokenRow, join


@dataclass(frozen=True)
class Split:
    """Says how a global batch is cut: micro_batch x accumulation x world, in rows or other units."""

    micro_batch: int
    accumulation: int
    rank: int
    world: int

    @property
    def global_batch(self) -> int:
        return self.micro_batch * self.accumulation * self.world


class TrainLoader:
    """Gives the micro-batches of any step. `num_rows` ends the stream: rows beyond it are fillers without loss."""

    def __init__(
        self, sources: Sequence[Source], weights: Sequence[float], collate: Collator, split: Split, num_rows: int | None
    ) -> None:
        self._sources = sources
        self._order = MixtureOrder(weights)
        self._collate = collate
        self._split = split
        self._num_rows = num_rows

    def batches(self, step: int) -> list[Batch]:
        """Return the micro-batches of this rank in optimizer step `step`, counted from 0."""
        split = self._split
        batches = []
        for micro in range(split.accumulation):
            first = step * split.global_batch + (micro * split.world + split.rank) * split.micro_batch
            rows = [self._row(position) for position in range(first, first + split.micro_batch)]
            batches.append(self._collate(rows))
        return batches

    def _row(self, position: int) -> TokenRow:
        if self._num_rows is not None and position >= self._num_rows:
            return FILLER
        source, draw = self._order[position]
        return self._sources[source].draw(draw)


@dataclass(frozen=True)
class Batching:
    """Says how rows are put together from their lengths."""

    plan: EpochPlanner
    epoch_rows: int
    task: str
    packed: bool = False
    """Tells whether a unit becomes one sequence, or stays as many rows as it holds."""


@dataclass(frozen=True)
class _Unit:
    """Stands for rows that stay together, and are not read yet: (source, its row) each. None is a filler."""

    rows: Sequence[tuple[int, int]]
    size: int


class PlannedLoader(TrainLoader):
    """Gives micro-batches planned from the rows' lengths, an epoch at a time. As rows do without a plan, units run on
    from epoch to epoch and are cut into steps; beyond the last one are fillers."""

    def __init__(
        self,
        sources: Sequence[MapSource],
        weights: Sequence[float],
        collate: Collator,
        split: Split,
        num_rows: int | None,
        batching: Batching,
    ) -> None:
        super().__init__(sources, weights, collate, split, num_rows)
        self._maps = list(sources)
        self._batching = batching
        self._size = joined if batching.packed else padded
        self._starts = [0]
        """Holds the first unit of each epoch planned so far, and of the one after."""
        self._epoch = -1
        self._units: Units | None = None
        self._filler = _Unit([], self._size(widths_of([FILLER], batching.task)))

    def batches(self, step: int) -> list[Batch]:
        split = self._split
        first = step * split.global_batch
        units = [self._unit(place) for place in range(first, first + split.global_batch)]
        mine = deal(units, lambda unit: unit.size, split.micro_batch, split.world)[split.rank :: split.world]
        read = [[self._read(unit) for unit in micro_batch] for micro_batch in mine]
        if self._batching.packed:
            return [self._collate([join(rows) for rows in micro_batch]) for micro_batch in read]
        return [self._collate([row for rows in micro_batch for row in rows]) for micro_batch in read]

    def count_units(self) -> int:
        """Count the units of all epochs, which `num_rows` must end."""
        while self._plan_epoch(len(self._starts) - 1):
            pass
        return self._starts[-1]

    def _read(self, unit: _Unit) -> list[Any]:
        return [self._maps[source].rows[row] for source, row in unit.rows] or [FILLER]

    def _unit(self, place: int) -> _Unit:
        while place >= self._starts[-1]:
            if not self._plan_epoch(len(self._starts) - 1):
                return self._filler
        epoch = bisect_right(self._starts, place) - 1
        self._plan_epoch(epoch)
        assert self._units is not None
        places = self._units[place - self._starts[epoch]]
        rows = list(zip(self._of_source[places].tolist(), self._rows[places].tolist(), strict=True))
        return _Unit(rows, self._size(self._widths[places]))

    def _plan_epoch(self, epoch: int) -> bool:
        """Put an epoch's units at hand; false if it is beyond the end."""
        first, last = epoch * self._batching.epoch_rows, (epoch + 1) * self._batching.epoch_rows
        if self._num_rows is not None:
            last = min(last, self._num_rows)
        if first >= last:
            return False
        if epoch != self._epoch:
            self._draw(first, last)
            self._units = self._batching.plan(epoch, self._widths)
            self._epoch = epoch
            if epoch == len(self._starts) - 1:
                self._starts.append(self._starts[-1] + len(self._units))
        return True

    def _draw(self, first: int, last: int) -> None:
        """Put at hand which row of which source stands at each position, and how wide it is."""
        sources, start = self._order.span(first, last)
        self._of_source, self._rows = sources, np.empty(last - first, np.int64)
        for number, source in enumerate(self._maps):
            at = np.flatnonzero(sources == number)
            self._rows[at] = source.places(start[number], start[number] + len(at))
        widths = [widths_of(source.rows, self._batching.task) for source in self._maps]
        self._widths = np.empty((last - first, widths[0].shape[1]), np.int64)
        for number, known in enumerate(widths):
            at = np.flatnonzero(sources == number)
            self._widths[at] = known[self._rows[at]]


def eval_batches(rows: Rows, collate: Collator, batch_size: int, rank: int, world: int) -> Iterator[Batch]:
    """Yield every row once over all ranks; all ranks get equally many batches."""
    for first in range(0, len(rows), batch_size * world):
        mine = rows[first + rank * batch_size : first + (rank + 1) * batch_size]
        yield collate([*mine] or [FILLER])
