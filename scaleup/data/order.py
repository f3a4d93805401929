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
        self._permutation = np.arange(num_rows)

    def __getitem__(self, draw: int) -> int:
        """Return the row of the draw, counted from 0."""
        epoch, place = divmod(draw, self._num_rows)
        if self._shuffle and epoch != self._epoch:
            self._permutation = np.random.default_rng([*self._seed, epoch]).permutation(self._num_rows)
            self._epoch = epoch
        return int(self._permutation[place])


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
