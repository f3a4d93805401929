from __future__ import annotations

from decimal import Decimal

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from scaleup.plan.arithmetic import epochs_to_rows, held_out_rows, rows_to_steps

ROWS = st.integers(1, 10**9)


@given(num_rows=st.integers(2, 10**9), fraction=st.floats(0, 1, exclude_min=True, exclude_max=True))
def test_some_rows_are_held_out_and_some_are_not(num_rows: int, fraction: float) -> None:
    held = held_out_rows(num_rows, fraction)
    assert 1 <= held <= num_rows - 1
    assume(1 <= num_rows * fraction <= num_rows - 1)
    assert abs(held - num_rows * fraction) <= 0.5


def test_of_a_single_row_none_is_held_out() -> None:
    assert held_out_rows(1, 0.5) == 0


@given(num_rows=ROWS, batch=st.integers(1, 10**5))
def test_steps_are_enough_and_none_is_empty(num_rows: int, batch: int) -> None:
    steps = rows_to_steps(num_rows, batch)
    assert (steps - 1) * batch < num_rows <= steps * batch


@given(num_rows=st.integers(1, 10**6), epochs=st.integers(1, 100))
def test_whole_epochs_are_whole(num_rows: int, epochs: int) -> None:
    assert epochs_to_rows(float(epochs), num_rows) == epochs * num_rows


@given(num_rows=st.integers(1, 1000), hundredths=st.integers(1, 1000))
def test_epochs_are_meant_as_they_are_written(num_rows: int, hundredths: int) -> None:
    exactly = Decimal(hundredths) / 100 * num_rows
    drawn = epochs_to_rows(hundredths / 100, num_rows)
    assert drawn - 1 < exactly <= drawn


@pytest.mark.parametrize(
    ("epochs", "num_rows", "drawn"), [(0.07, 100, 7), (1.1, 10, 11), (0.3, 10, 3), (1e-9, 10, 1), (0.25, 10, 3)]
)
def test_parts_of_epochs(epochs: float, num_rows: int, drawn: int) -> None:
    assert epochs_to_rows(epochs, num_rows) == drawn
