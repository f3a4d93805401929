"""Batches planned from lengths: each row once an epoch, within the budget, the same rows however a step is split."""

from itertools import chain

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scaleup.data.batching import (
    cut_by_tokens,
    deal,
    order_by_length,
    pack,
    padded_size,
    plan_by_length,
    plan_by_tokens,
    plan_packs,
)
from scaleup.data.loader import Batching, PlannedLoader, Split
from scaleup.data.sources import MapSource
from scaleup.data.tokenization import FILLER, LabelledTokens, PairTokens, Tokens

LENGTHS = st.lists(st.integers(1, 30), min_size=1, max_size=60)
BUDGET = 30
PLANS = ("tokens", "length", "packs")


def rows(lengths, first=0):
    """A row's first token is its name."""
    return [Tokens(np.array([first + i] * size), np.zeros(1 + size % 5, int)) for i, size in enumerate(lengths)]


def name(row):
    return "filler" if row is FILLER else int(row.input_ids[0])


def names_within(row):
    """Of a packed sequence: a row starts where positions do."""
    if row is FILLER or row.position_ids is None:
        return [name(row)]
    return row.input_ids[row.position_ids == 0].tolist()


def make_loader(plan, lengths, split, num_rows=None, task="causal_lm", seed=0, weights=(1.0,)):
    sizes = np.array_split(lengths, len(weights))
    sources = [MapSource(rows(part, 1000 * at), [seed, at], True) for at, part in enumerate(sizes)]
    planner = {
        "tokens": lambda: plan_by_tokens(BUDGET + 6, seed),
        "length": lambda: plan_by_length(split.global_batch, len(lengths), seed),
        "packs": lambda: plan_packs(BUDGET, seed),
    }[plan]()
    batching = Batching(planner, len(lengths), task, plan == "packs")
    return PlannedLoader(sources, weights, lambda batch: list(batch), split, num_rows, batching)


def num_steps(plan, lengths, split, **keys):
    return -(-make_loader(plan, lengths, split, **keys).count_units() // split.global_batch)


def step_batches(plan, lengths, shape, step, **keys):
    """Every micro-batch of a step, by rank."""
    micro, accumulation, world = shape
    splits = [Split(micro, accumulation, rank, world) for rank in range(world)]
    return [make_loader(plan, lengths, split, **keys).batches(step) for split in splits]


def step_names(plan, lengths, shape, step, **keys):
    found = chain.from_iterable(chain.from_iterable(step_batches(plan, lengths, shape, step, **keys)))
    return sorted((name for row in found for name in names_within(row)), key=str)


@given(LENGTHS, st.sampled_from(PLANS), st.integers(1, 3), st.integers(1, 3), st.integers(1, 3), st.integers(1, 2))
def test_every_row_once_an_epoch(lengths, plan, micro, accumulation, world, epochs):
    """Over a whole run; and each rank has its micro-batches in every step, to the last."""
    micro = 1 if plan == "tokens" else micro
    shape, total = (micro, accumulation, world), epochs * len(lengths)
    steps = num_steps(plan, lengths, Split(*shape[:2], 0, world), num_rows=total)
    loaders = [make_loader(plan, lengths, Split(micro, accumulation, r, world), total) for r in range(world)]
    seen = []
    for step in range(steps):
        by_rank = [loader.batches(step) for loader in loaders]
        assert all(len(batches) == accumulation and all(batches) for batches in by_rank)
        found = [name for batches in by_rank for batch in batches for row in batch for name in names_within(row)]
        assert "filler" not in found or step == steps - 1, "only the last step is short"
        seen += found
    real = sorted(name for name in seen if name != "filler")
    assert real == sorted(list(range(len(lengths))) * epochs)
    assert all(row is FILLER for batch in loaders[0].batches(steps) for row in batch)


@given(LENGTHS, st.sampled_from(PLANS), st.integers(0, 9))
def test_the_rows_of_a_step_do_not_depend_on_the_split(lengths, plan, step):
    """1 x 4, 2 x 2 and 4 x 1 processes x accumulation; asked for directly, as after a resume."""
    one, two, four = (step_names(plan, lengths, (1, 4 // world, world), step) for world in (1, 2, 4))
    assert one == two == four and "filler" not in one
    if plan == "length":
        assert step_names(plan, lengths, (2, 2, 1), step) == one


@given(LENGTHS, st.sampled_from(PLANS))
def test_a_step_is_a_pure_function_of_its_number(lengths, plan):
    split = Split(1, 2, 0, 2)
    forth, back = (make_loader(plan, lengths, split) for _ in range(2))
    in_order = [[[names_within(row) for row in batch] for batch in forth.batches(step)] for step in range(6)]
    for step in (5, 0, 3, 1, 4, 2):
        assert [[names_within(row) for row in batch] for batch in back.batches(step)] == in_order[step]


@given(LENGTHS, st.sampled_from(["causal_lm", "seq2seq_lm"]), st.integers(0, 9))
def test_no_micro_batch_is_beyond_the_budget(lengths, task, step):
    for batch in chain.from_iterable(step_batches("tokens", lengths, (1, 2, 2), step, task=task)):
        assert padded_size(batch, task) <= BUDGET + 6


@given(LENGTHS, st.integers(0, 9))
def test_no_sequence_is_beyond_the_length(lengths, step):
    for row in chain.from_iterable(chain.from_iterable(step_batches("packs", lengths, (2, 1, 2), step))):
        assert len(row.input_ids) <= BUDGET


@pytest.mark.parametrize("plan", PLANS)
def test_epochs_and_seeds_differ(plan):
    lengths = [1 + i % 30 for i in range(120)]
    split = Split(1, 4, 0, 1)
    steps = num_steps(plan, lengths, split, num_rows=120)
    one = [step_names(plan, lengths, (1, 4, 1), step) for step in range(steps - 1)]
    other_epoch = [step_names(plan, lengths, (1, 4, 1), steps + step) for step in range(steps - 1)]
    other_seed = [step_names(plan, lengths, (1, 4, 1), step, seed=1) for step in range(steps - 1)]
    assert one != other_epoch and one != other_seed and other_epoch != other_seed


@given(LENGTHS.filter(lambda lengths: len(lengths) > 3), st.sampled_from(PLANS), st.integers(1, 3))
def test_an_epoch_of_a_mixture_draws_by_weight(lengths, plan, epochs):
    """As many draws as the sources hold rows, three of the first for one of the second."""
    total = epochs * len(lengths)
    keys = {"weights": (3.0, 1.0), "num_rows": total}
    steps = range(num_steps(plan, lengths, Split(1, 1, 0, 2), **keys))
    seen = [name for step in steps for name in step_names(plan, lengths, (1, 1, 2), step, **keys) if name != "filler"]
    assert len(seen) == total
    assert abs(sum(name < 1000 for name in seen) - 0.75 * total) <= 1


def test_part_of_an_epoch():
    loader = make_loader("length", [1] * 10, Split(2, 1, 0, 1), num_rows=13)
    assert loader.count_units() == 13


def test_rows_of_a_step_are_of_similar_length():
    lengths = np.random.default_rng(0).integers(1, 200, 1000).tolist()
    steps = [list(chain(*step_batches("length", lengths, (4, 1, 2), step))) for step in range(120)]
    spread = [max(len(r.input_ids) for b in s for r in b) - min(len(r.input_ids) for b in s for r in b) for s in steps]
    assert np.median(spread) < 10
    assert len({len(step[0][0].input_ids) for step in steps}) > 40, "short and long steps come in a random order"


@given(LENGTHS, st.integers(1, 70))
def test_neighbours_are_alike_across_windows(lengths, window):
    order = order_by_length(np.array(lengths), window)
    assert sorted(order.tolist()) == list(range(len(lengths)))
    for number, first in enumerate(range(0, len(lengths), window)):
        places = order[first : first + window]
        assert set(places // window) == {number}
        ascending = [lengths[place] for place in (places[::-1] if number % 2 else places)]
        assert ascending == sorted(ascending)


@given(LENGTHS, st.integers(1, 100))
def test_runs_are_as_long_as_the_budget_allows(lengths, budget):
    """And a row that is too long by itself is alone: load_training_data refuses it before."""
    sizes = np.array(lengths)[:, None]
    runs = cut_by_tokens(sizes, np.arange(len(lengths)), budget)
    assert np.concatenate(runs).tolist() == list(range(len(lengths)))
    for run, following in zip(runs, [*runs[1:], None], strict=True):
        assert len(run) == 1 or len(run) * sizes[run].max() <= budget
        if following is not None:
            assert (len(run) + 1) * sizes[[*run, following[0]]].max() > budget


@given(LENGTHS, st.integers(30, 100))
def test_packs(lengths, capacity):
    """Each row once, whole, within capacity; and no two packs could be one, so at most one is less than half full."""
    packs = pack(lengths, capacity)
    assert sorted(chain.from_iterable(packs)) == list(range(len(lengths)))
    filled = sorted(sum(lengths[row] for row in rows) for rows in packs)
    assert filled[-1] <= capacity
    assert len(filled) < 2 or filled[0] + filled[1] > capacity


def test_best_fit():
    """The 3 goes beside the 7, where it fits exactly, and not beside the 6."""
    assert pack([3, 6, 7], 10) == [[2, 0], [1]]


def test_dealing_goes_back_and_forth():
    units = [rows([size]) for size in (1, 8, 2, 7, 3, 6, 4, 5)]
    dealt = deal(units, lambda unit: len(unit[0].input_ids), micro_batch=2, world=2)
    assert [[len(unit[0].input_ids) for unit in batch] for batch in dealt] == [[8, 7], [6, 5], [2, 1], [4, 3]]


def test_the_padded_size():
    batch = [Tokens(np.zeros(5), np.zeros(2)), Tokens(np.zeros(3), np.zeros(4))]
    assert padded_size(batch, "causal_lm") == 2 * 5
    assert padded_size(batch, "seq2seq_lm") == 2 * (5 + 4)


def test_a_text_with_a_class_is_padded_once_and_a_pair_twice():
    text = np.zeros(5, np.int32)
    assert padded_size([LabelledTokens(text, 1), LabelledTokens(text[:3], 0)], "sequence_classification") == 2 * 5
    assert padded_size([PairTokens(text, text[:3], 0.0)], "sequence_classification") == 2 * 5
