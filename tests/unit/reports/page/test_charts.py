"""Curves keep their peaks, axes have round numbers, and what is drawn is what was measured."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scaleup.reports.html import Limits
from scaleup.reports.page.charts import (
    Axis,
    Line,
    Mark,
    in_words,
    line_chart,
    log_ticks,
    scatter_chart,
    short,
    thinned,
    ticks,
)
from tests.pages import Page

NUMBERS = st.floats(-1e12, 1e12, allow_nan=False)


@given(st.lists(NUMBERS, min_size=1, max_size=400), st.integers(4, 60))
def test_thinned_lines_keep_their_ends_and_peaks(values: list[float], count: int) -> None:
    points = list(enumerate(values))
    few = thinned([(float(x), y) for x, y in points], count)
    assert len(few) <= max(count, 4)
    assert few[0] == points[0]
    assert few[-1] == points[-1]
    assert {min(values), max(values)} <= {y for _, y in few}
    assert few == sorted(few, key=lambda point: point[0])


@given(NUMBERS, st.floats(1e-6, 1e12))
def test_ticks_are_few_and_within(low: float, size: float) -> None:
    high = low + size
    found = ticks(low, high)
    assert len(found) <= 6
    room = size * 1e-6 + abs(low) * 1e-9
    assert all(low - room <= tick <= high + room for tick in found)


def test_round_ticks() -> None:
    assert ticks(0, 10) == [0, 5, 10]
    assert ticks(0.3, 1.1) == pytest.approx([0.4, 0.6, 0.8, 1.0])
    assert ticks(3, 3) == [3]
    assert log_ticks(0.5, 2000) == [1, 10, 100, 1000]
    assert log_ticks(0.9, 4) == [1, 2]


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0.00002, "2e-05"), (3.14159, "3.14"), (1234.0, "1234"), (12000.0, "12k"), (1.2e6, "1.2M"), (-0.5, "-0.5")],
)
def test_short_numbers(value: float, shown: str) -> None:
    assert short(value) == shown


@given(st.lists(NUMBERS, min_size=1, max_size=20))
def test_every_value_has_a_place_on_its_axis(values: list[float]) -> None:
    axis = Axis.over(values, 164, 10, may_be_log=True)
    assert all(10 <= axis.place(value) <= 164 for value in values)


def test_a_line_is_drawn_where_its_values_are() -> None:
    picture = line_chart("loss", [Line("training", [(1, 4.0), (2, 2.0), (3, 3.0)])], "step", Limits())
    ((points,),) = (re.findall(r'points="([^"]+)"', picture),)
    (x1, y1), (x2, y2), (x3, y3) = (tuple(map(float, point.split(","))) for point in points.split())
    assert x2 - x1 == pytest.approx(x3 - x2)
    assert (y2 - y1) / (y2 - y3) == pytest.approx(2, abs=0.05)  # downwards: from 4 to 2 is twice from 3 to 2
    assert "training: 2 at step 2" in Page(picture).text
    (told,) = [attributes["aria-label"] for _, attributes in Page(picture).tags if "aria-label" in attributes]
    assert told == "loss. training: from 4 at step 1 to 3 at 3, lowest 2 at 2, highest 4 at 1"


def test_a_single_point_and_a_level() -> None:
    picture = line_chart("memory", [Line("measured", [(5, 7.0)])], "step", Limits(), level=9.0)
    assert "level" in picture
    assert in_words([(5, 7.0)], "step") == "7 at step 5"


def test_a_scatter_names_its_points_with_their_intervals() -> None:
    marks = [Mark("small", 1.0, 9.0, 8.0, 10.0), Mark("<large>", 40.0, 5.0, 4.0, 6.0, is_filled=False)]
    text = Page(scatter_chart("by size", marks, "MB")).text
    assert "small: 9 (8 to 10) at 1" in text
    assert "<large>: 5 (4 to 6) at 40" in text
