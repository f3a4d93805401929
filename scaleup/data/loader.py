"""Steps -> this rank's micro-batches. Stateless: which rows a step holds follows from its number alone, whatever the
number of processes or the accumulation, so one global batch split in any way is the same batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from scaleup.data.collate import Batch, Collator
from scaleup.data.order import MixtureOrder
from scaleup.data.sources import Source
from scaleup.data.tokenization import FILLER, Tokens


@dataclass(frozen=True)
class Split:
    """How a global batch of rows is cut: micro_batch x accumulation x world."""

    micro_batch: int
    accumulation: int
    rank: int
    world: int

    @property
    def global_batch(self) -> int:
        return self.micro_batch * self.accumulation * self.world


class TrainLoader:
    """Micro-batches of any step. `num_rows` ends the stream: rows beyond it are fillers without loss."""

    def __init__(
        self, sources: Sequence[Source], weights: Sequence[float], collate: Collator, split: Split, num_rows: int | None
    ) -> None:
        self._sources = sources
        self._order = MixtureOrder(weights)
        self._collate = collate
        self._split = split
        self._num_rows = num_rows

    def batches(self, step: int) -> list[Batch]:
        """The micro-batches of this rank in optimizer step `step`, counted from 0."""
        split = self._split
        batches = []
        for micro in range(split.accumulation):
            first = step * split.global_batch + (micro * split.world + split.rank) * split.micro_batch
            rows = [self._row(position) for position in range(first, first + split.micro_batch)]
            batches.append(self._collate(rows))
        return batches

    def _row(self, position: int) -> Tokens:
        if self._num_rows is not None and position >= self._num_rows:
            return FILLER
        source, draw = self._order[position]
        return self._sources[source].draw(draw)


def eval_batches(rows: Sequence[Tokens], collate: Collator, batch_size: int, rank: int, world: int) -> Iterator[Batch]:
    """Every row once over all ranks; all ranks get equally many batches."""
    for first in range(0, len(rows), batch_size * world):
        mine = rows[first + rank * batch_size : first + (rank + 1) * batch_size]
        yield collate([*mine] or [FILLER])
