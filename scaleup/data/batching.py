"""Lengths of rows go in; which rows share a micro-batch comes out: planned an epoch at a time from the lengths alone,
so the same in every process."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TypeVar

import numpy as np

from scaleup.data.rows import Rows, widths_of

T = TypeVar("T")
WINDOW = 50
"""Counts the batches that are sorted by length together: more waste less on padding, fewer mix rows better."""


@dataclass(frozen=True)
class Units:
    """Holds the units of an epoch, each the places of rows that stay together: a micro-batch by tokens, a packed
    sequence, or a single row."""

    places: np.ndarray
    starts: np.ndarray
    """Holds where each unit begins among the places, and where the last one ends."""

    @classmethod
    def of(cls, units: Sequence[Sequence[int] | np.ndarray]) -> Units:
        lengths = np.fromiter(map(len, units), np.int64, len(units))
        places = np.fromiter(chain.from_iterable(units), np.int64, int(lengths.sum()))
        return cls(places, np.concatenate([[0], np.cumsum(lengths)]))

    @classmethod
    def single(cls, places: Iterable[np.ndarray]) -> Units:
        """Returns units of one row each."""
        rows = np.concatenate([np.empty(0, np.int64), *places])
        return cls(rows, np.arange(len(rows) + 1))

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __getitem__(self, number: int) -> np.ndarray:
        return self.places[self.starts[number] : self.starts[number + 1]]


EpochPlanner = Callable[[int, np.ndarray], Units]
"""Maps (epoch, the widths of its rows in their shuffled order) -> each of them once, in the order of training."""


def padded_size(rows: Rows, task: str) -> int:
    """Return the tokens of a micro-batch with its padding: rows x longest; for seq2seq models rows x (longest prompt +
    target), for pairs 2 x rows x longest."""
    return padded(widths_of(rows, task))


def padded(widths: np.ndarray) -> int:
    """Return what `padded_size` does, of the rows' widths."""
    return len(widths) * int(widths.max(axis=0).sum())


def joined(widths: np.ndarray) -> int:
    """Return the tokens of rows laid one after another."""
    return int(widths[:, 0].sum())


def plan_by_tokens(budget: int, seed: int) -> EpochPlanner:
    """Plan micro-batches of rows of similar length, none larger than `budget` with its padding, in a random order."""

    def plan(epoch: int, sizes: np.ndarray) -> Units:
        window = WINDOW * max(1, round(budget / sizes.sum(axis=1).mean()))
        micro_batches = cut_by_tokens(sizes, order_by_length(sizes.sum(axis=1), window), budget)
        return Units.of([micro_batches[place] for place in _shuffled(len(micro_batches), seed, epoch)])

    return plan


def plan_by_length(global_batch: int, epoch_rows: int, seed: int) -> EpochPlanner:
    """Plan single rows, so that those of one step are of similar length; the steps come in a random order."""

    def plan(epoch: int, sizes: np.ndarray) -> Units:
        order = order_by_length(sizes.sum(axis=1), WINDOW * global_batch)
        left_over = -(epoch * epoch_rows) % global_batch  # what the last step of the epoch before still takes
        head, rest = order[:left_over], order[left_over:]
        steps = [rest[at : at + global_batch] for at in range(0, len(rest), global_batch)]
        tail = [steps.pop()] if steps and len(steps[-1]) < global_batch else []
        shuffled = [steps[place] for place in _shuffled(len(steps), seed, epoch)]
        return Units.single([head, *shuffled, *tail])

    return plan


def plan_packs(capacity: int, seed: int) -> EpochPlanner:
    """Plan sequences of whole rows, none longer than `capacity`, in a random order."""

    def plan(epoch: int, sizes: np.ndarray) -> Units:
        packs = pack(sizes[:, 0].tolist(), capacity)
        return Units.of([packs[place] for place in _shuffled(len(packs), seed, epoch)])

    return plan


def order_by_length(lengths: np.ndarray, window: int) -> np.ndarray:
    """Return the places of the rows, sorted by length within each window, up and down by turns: so neighbours are of
    similar length where two windows meet, too."""
    windows = []
    for number, first in enumerate(range(0, len(lengths), window)):
        ascending = first + np.argsort(lengths[first : first + window], kind="stable")
        windows.append(ascending[::-1] if number % 2 else ascending)
    return np.concatenate(windows)


def cut_by_tokens(sizes: np.ndarray, order: np.ndarray, budget: int) -> list[np.ndarray]:
    """Cut `order` into runs, each as long as its padded size allows. A row beyond the budget is a run of its own."""
    cuts, first, longest = [], 0, np.zeros_like(sizes[0])
    for at, row in enumerate(order):
        longest = np.maximum(longest, sizes[row])
        if at > first and (at + 1 - first) * longest.sum() > budget:
            cuts.append(at)
            first, longest = at, sizes[row]
    return np.split(order, cuts)


def pack(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Pack rows by best fit, longest first: each row goes where the least room is left beside it. Return the rows'
    places in each pack."""
    shortest = min(lengths)
    packs: list[list[int]] = []
    rooms: list[tuple[int, int]] = []  # (room left, pack), sorted, of packs that may still take a row
    for row in sorted(range(len(lengths)), key=lambda row: -lengths[row]):
        at = bisect_left(rooms, (lengths[row], 0))
        if at < len(rooms):
            room, number = rooms.pop(at)
        else:
            room, number = capacity, len(packs)
            packs.append([])
        packs[number].append(row)
        if room - lengths[row] >= shortest:
            insort(rooms, (room - lengths[row], number))
    return packs


def deal(units: Sequence[T], size: Callable[[T], int], micro_batch: int, world: int) -> list[Sequence[T]]:
    """Deal micro-batches to the ranks by turns, the largest units first, back and forth: so that in each pass the ranks
    have micro-batches of similar size, and no rank always has the largest."""
    ordered = sorted(units, key=size, reverse=True)
    micro_batches = [ordered[first : first + micro_batch] for first in range(0, len(ordered), micro_batch)]
    passes = [micro_batches[first : first + world] for first in range(0, len(micro_batches), world)]
    return [one for number, ranks in enumerate(passes) for one in (reversed(ranks) if number % 2 else ranks)]


def _shuffled(count: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch, 0xBA7C4]).permutation(count)
