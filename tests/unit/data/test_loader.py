"""One global batch, cut in any way, is the same rows."""

from itertools import chain

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scaleup.data.loader import Split, TrainLoader, eval_batches
from scaleup.data.sources import MapSource
from scaleup.data.tokenization import FILLER, Tokens

SPLITS = st.tuples(st.integers(1, 4), st.integers(1, 4), st.integers(1, 4))


def rows(num_rows, first=0):
    return [Tokens(np.full(1, first + index), np.full(1, first + index)) for index in range(num_rows)]


def name(row):
    return "filler" if row is FILLER else int(row.input_ids[0])


def names(batch):
    return [name(row) for row in batch]


def loader(split, sizes=(10,), weights=(1.0,), num_rows=None, shuffle=True):
    sources = [MapSource(rows(size, 1000 * at), [0, at], shuffle) for at, size in enumerate(sizes)]
    return TrainLoader(sources, weights, names, split, num_rows)


def step_rows(micro, accumulation, world, step, **keys):
    """What all ranks see in one step, in the order of micro-batches and ranks."""
    ranks = [loader(Split(micro, accumulation, rank, world), **keys).batches(step) for rank in range(world)]
    assert all(len(batches) == accumulation for batches in ranks)
    assert all(len(batch) == micro for batches in ranks for batch in batches)
    return [row for number in range(accumulation) for batches in ranks for row in batches[number]]


@given(SPLITS, st.integers(0, 6), st.booleans(), st.none() | st.integers(1, 60))
def test_a_step_holds_the_same_rows_however_it_is_split(split, step, shuffle, num_rows):
    keys = {"sizes": (7, 5), "weights": (2.0, 1.0), "shuffle": shuffle, "num_rows": num_rows}
    size = split[0] * split[1] * split[2]
    whole = step_rows(size, 1, 1, step, **keys)
    for same in ((1, size, 1), (1, 1, size), split):
        assert step_rows(*same, step, **keys) == whole


@given(SPLITS, st.integers(1, 30), st.integers(1, 3))
def test_every_row_comes_once_an_epoch(split, size, epochs):
    micro, accumulation, world = split
    global_batch = micro * accumulation * world
    steps = range(-(-size * epochs // global_batch))
    keys = {"sizes": (size,), "num_rows": size * epochs}
    seen = [row for step in steps for row in step_rows(*split, step, **keys)]
    drawn, beyond = seen[: size * epochs], seen[size * epochs :]
    for epoch in range(epochs):
        assert sorted(drawn[epoch * size : (epoch + 1) * size]) == list(range(size))
    assert beyond == ["filler"] * (len(steps) * global_batch - size * epochs)
    assert "filler" not in drawn


def test_without_an_end_there_are_no_fillers():
    seen = [row for step in range(10) for row in step_rows(2, 2, 2, step)]
    assert "filler" not in seen and len(seen) == 80 and set(seen) == set(range(10))


def test_steps_differ():
    assert len({tuple(step_rows(4, 1, 1, step, sizes=(40,))) for step in range(10)}) == 10


def test_a_mixture_draws_by_weight():
    """And within a source without repeating a row before all were seen, although the larger is never through."""
    seen = [row for step in range(10) for row in step_rows(2, 2, 1, step, sizes=(100, 10), weights=(3.0, 1.0))]
    first, second = ([row for row in seen if row // 1000 == source] for source in (0, 1))
    assert (len(first), len(second)) == (30, 10)
    assert len(set(first)) == 30 and len(set(second)) == 10


def test_the_global_batch():
    assert Split(2, 3, 0, 4).global_batch == 24


@given(st.integers(1, 40), st.integers(1, 5), st.integers(1, 4))
def test_evaluation_takes_every_row_once(num_rows, batch_size, world):
    ranks = [list(eval_batches(rows(num_rows), names, batch_size, rank, world)) for rank in range(world)]
    assert len({len(batches) for batches in ranks}) == 1, "all ranks make equally many steps"
    assert all(0 < len(batch) <= batch_size for batch in chain(*ranks))
    assert sorted(row for batch in chain(*ranks) for row in batch if row != "filler") == list(range(num_rows))


@pytest.mark.parametrize("world", [1, 2])
def test_evaluating_nothing_takes_no_batch(world):
    assert list(eval_batches([], names, 2, 0, world)) == []
