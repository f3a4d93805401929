"""Lengths of rows go in; which rows share a micro-batch comes out: planned an epoch at a time from the lengths alone,
so the same in every process."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from scaleup.data.tokenization import LabelledTokens, PairTokens, TokenRow

Unit = Sequence[Any]
"""Holds rows of one type that stay together: a micro-batch by tokens, a packed sequence, or a single row."""

EpochPlanner = Callable[[int, Sequence[TokenRow]], list[Unit]]
"""Maps (epoch, its rows in their shuffled order) -> each of them once, in units, in the order of training."""

WINDOW = 50
"""Counts the batches that are sorted by length together: more waste less on padding, fewer mix rows better."""


def widths(rows: Sequence[TokenRow], task: str) -> np.ndarray:
    """Return the tokens of each row in each tensor that is padded: (rows, 1) of causal models and classifiers, (rows,
    2) of encoder-decoders and pairs, whose two texts are padded alike."""
    return np.array([_widths(row, task) for row in rows])


def _widths(row: TokenRow, task: str) -> tuple[int, ...]:
    if isinstance(row, PairTokens):
        return (max(len(row.chosen), len(row.rejected)),) * 2
    if isinstance(row, LabelledTokens) or task != "seq2seq_lm":
        return (len(row.input_ids),)
    return len(row.input_ids), len(row.labels)


def padded_size(rows: Sequence[TokenRow], task: str) -> int:
    """Return the tokens of a micro-batch with its padding: rows x longest; for seq2seq models rows x (longest prompt +
    target), for pairs 2 x rows x longest."""
    return len(rows) * int(widths(rows, task).max(axis=0).sum())


def plan_by_tokens(budget: int, task: str, seed: int) -> EpochPlanner:
    """Plan micro-batches of rows of similar length, none larger than `budget` with its padding, in a random order."""

    def plan(epoch: int, rows: Sequence[TokenRow]) -> list[Unit]:
        sizes = widths(rows, task)
        window = WINDOW * max(1, round(budget / sizes.sum(axis=1).mean()))
        micro_batches = cut_by_tokens(sizes, order_by_length(sizes.sum(axis=1), window), budget)
        return [[rows[row] for row in micro_batches[place]] for place in _shuffled(len(micro_batches), seed, epoch)]

    return plan


def plan_by_length(global_batch: int, epoch_rows: int, task: str, seed: int) -> EpochPlanner:
    """Plan single rows, so that those of one step are of similar length; the steps come in a random order."""

    def plan(epoch: int, rows: Sequence[TokenRow]) -> list[Unit]:
        order = order_by_length(widths(rows, task).sum(axis=1), WINDOW * global_batch)
        left_over = -(epoch * epoch_rows) % global_batch  # what the last step of the epoch before still takes
        head, rest = order[:left_over], order[left_over:]
        steps = [rest[at : at + global_batch] for at in range(0, len(rest), global_batch)]
        tail = [steps.pop()] if steps and len(steps[-1]) < global_batch else []
        shuffled = [steps[place] for place in _shuffled(len(steps), seed, epoch)]
        return [[rows[row]] for step in [head, *shuffled, *tail] for row in step]

    return plan


def plan_packs(capacity: int, seed: int) -> EpochPlanner:
    """Plan sequences of whole rows, none longer than `capacity`, in a random order."""

    def plan(epoch: int, rows: Sequence[Any]) -> list[Unit]:
        packs = pack([len(row.input_ids) for row in rows], capacity)
        return [[rows[row] for row in packs[place]] for place in _shuffled(len(packs), seed, epoch)]

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


def deal(units: Sequence[Unit], size: Callable[[Unit], int], micro_batch: int, world: int) -> list[Sequence[Unit]]:
    """Deal micro-batches to the ranks by turns, the largest units first, back and forth: so that in each pass the ranks
    have micro-batches of similar size, and no rank always has the largest."""
    ordered = sorted(units, key=size, reverse=True)
    micro_batches = [ordered[first : first + micro_batch] for first in range(0, len(ordered), micro_batch)]
    passes = [micro_batches[first : first + world] for first in range(0, len(micro_batches), world)]
    return [one for number, ranks in enumerate(passes) for one in (reversed(ranks) if number % 2 else ranks)]


def _shuffled(count: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch, 0xBA7C4]).permutation(count)
