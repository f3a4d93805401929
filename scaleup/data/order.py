"""A seed and a position go in; which row comes then goes out: a pure function, so a position is all a checkpoint must
hold."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


class ShuffledOrder:
    """Stands for the endless order of one source's rows: every epoch is a permutation of its own."""

    def __init__(self, num_rows: int, seed: Sequence[int], shuffle: bool) -> None:
        self._num_rows = num_rows
        self._seed = list(seed)
        self._shuffle = shuffle
        self._epoch = -1
        self._permutation: np.ndarray | None = None

    def __getitem__(self, draw: int) -> int:
        """Return the row of the draw, counted from 0."""
        epoch, place = divmod(draw, self._num_rows)
        permutation = self._of_epoch(epoch)
        return place if permutation is None else int(permutation[place])

    def span(self, first: int, end: int) -> np.ndarray:
        """Return the rows of the draws from `first` up to `end`."""
        draws = np.arange(first, end)
        rows = draws % self._num_rows
        for epoch in range(first // self._num_rows, -(-end // self._num_rows)):
            if (permutation := self._of_epoch(epoch)) is not None:
                of_epoch = draws // self._num_rows == epoch
                rows[of_epoch] = permutation[rows[of_epoch]]
        return rows

    def _of_epoch(self, epoch: int) -> np.ndarray | None:
        if self._shuffle and epoch != self._epoch:
            self._permutation = np.random.default_rng([*self._seed, epoch]).permutation(self._num_rows)
            self._epoch = epoch
        return self._permutation


class MixtureOrder:
    """Maps position -> (source, how many rows that source gave before). Each next row comes from the source whose share
    is due first, among those that are not ahead of theirs: so at every position each source has given its share to
    within a row. (Giving to the source furthest behind is not enough: with many sources one falls further back.)"""

    def __init__(self, weights: Sequence[float]) -> None:
        self._shares = np.asarray(weights, np.float64) / sum(weights)
        self._rewind()

    def _rewind(self) -> None:
        self._position = 0
        self._given = np.zeros(len(self._shares), np.int64)

    def __getitem__(self, position: int) -> tuple[int, int]:
        if len(self._shares) == 1:
            return 0, position
        if position < self._position:
            self._rewind()
        while True:
            is_ahead = self._given >= self._shares * (self._position + 1)
            source = int(np.argmin(np.where(is_ahead, np.inf, (self._given + 1) / self._shares)))
            draw = int(self._given[source])
            self._given[source] += 1
            self._position += 1
            if self._position > position:
                return source, draw

    def span(self, first: int, end: int) -> tuple[np.ndarray, list[int]]:
        """Return the source at each position from `first` up to `end`, and how many rows each source gave before."""
        if len(self._shares) == 1:
            return np.zeros(end - first, np.int16), [first]
        sources, start = np.empty(end - first, np.int16), [-1] * len(self._shares)
        for place, position in enumerate(range(first, end)):
            source, draw = self[position]
            sources[place] = source
            if start[source] < 0:
                start[source] = draw
        return sources, [max(0, draw) for draw in start]
