"""Which row comes when."""

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scaleup.data.order import MixtureOrder, ShuffledOrder

SEEDS = st.integers(0, 2**32)
WEIGHTS = st.lists(st.integers(1, 1000) | st.floats(0.01, 1000), min_size=1, max_size=40)


@given(st.integers(1, 50), SEEDS, st.integers(0, 5))
def test_every_epoch_is_a_permutation(num_rows, seed, epoch):
    order = ShuffledOrder(num_rows, [seed, 0], shuffle=True)
    draws = [order[draw] for draw in range(epoch * num_rows, (epoch + 1) * num_rows)]
    assert sorted(draws) == list(range(num_rows))


@given(st.integers(1, 30), SEEDS, st.lists(st.integers(0, 200), max_size=30))
def test_a_draw_depends_on_its_number_alone(num_rows, seed, draws):
    one, straight = ShuffledOrder(num_rows, [seed], True), ShuffledOrder(num_rows, [seed], True)
    expected = [straight[draw] for draw in range(201)]
    assert [one[draw] for draw in draws] == [expected[draw] for draw in draws]


def test_epochs_and_seeds_differ():
    def epoch(number, *seed):
        order = ShuffledOrder(100, seed, shuffle=True)
        return tuple(order[draw] for draw in range(number * 100, (number + 1) * 100))

    orders = {epoch(0, 0, 0), epoch(1, 0, 0), epoch(0, 1, 0), epoch(0, 0, 1), epoch(2, 0, 0)}
    assert len(orders) == 5
    assert tuple(range(100)) not in orders


def test_without_shuffling_rows_come_as_they_are():
    order = ShuffledOrder(3, [0], shuffle=False)
    assert [order[draw] for draw in range(7)] == [0, 1, 2, 0, 1, 2, 0]


def assert_shares_hold(weights, length):
    order = MixtureOrder(weights)
    shares, given_rows = np.asarray(weights) / sum(weights), np.zeros(len(weights))
    for position in range(length):
        source, draw = order[position]
        assert draw == given_rows[source], "a source's rows come one after the other"
        given_rows[source] += 1
        assert np.abs(given_rows - shares * (position + 1)).max() <= 1 + 1e-6


@given(WEIGHTS, st.integers(1, 300))
def test_every_start_of_a_mixture_holds_the_weights_to_within_a_row(weights, length):
    assert_shares_hold(weights, length)


@pytest.mark.parametrize("weights", [[50, 50, *[1] * 20], [100, 100, 100, *[1] * 50], [0.9, *[0.01] * 10]])
def test_many_small_sources_beside_large_ones(weights):
    """Here, always giving to the source furthest behind leaves a large one more than a row behind."""
    assert_shares_hold(weights, 500)


def test_an_even_mixture_takes_turns():
    order = MixtureOrder([1, 1])
    assert [order[position] for position in range(4)] == [(0, 0), (1, 0), (0, 1), (1, 1)]
    order = MixtureOrder([3, 1])
    assert sorted(order[position][0] for position in range(8)) == [0] * 6 + [1] * 2


@given(WEIGHTS, st.lists(st.integers(0, 120), min_size=1, max_size=40))
def test_random_access_equals_going_straight(weights, positions):
    order, straight = MixtureOrder(weights), MixtureOrder(weights)
    expected = [straight[position] for position in range(121)]
    assert [order[position] for position in positions] == [expected[position] for position in positions]


def test_the_order_needs_no_global_random_state():
    order = ShuffledOrder(20, [1], True)
    first = [order[draw] for draw in range(20)]
    random.seed(7), np.random.seed(7)
    other = ShuffledOrder(20, [1], True)
    state = np.random.get_state()[1].tolist()
    assert [other[draw] for draw in range(20)] == first
    assert np.random.get_state()[1].tolist() == state
