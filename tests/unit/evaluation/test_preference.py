"""Metrics of pairs against numbers worked out by hand."""

import numpy as np
import pytest

from scaleup.data.tokenization import PairTokens
from scaleup.evaluation.preference import accuracy, calibration_error, correlation, preference_metrics


def pair(chosen: int, rejected: int) -> PairTokens:
    return PairTokens(np.ones(chosen, np.int32), np.ones(rejected, np.int32))


def test_metrics() -> None:
    scores = np.array([[2.0, 0.0], [0.0, 1.0], [3.0, 0.0], [0.5, 0.5]])
    found = preference_metrics(scores, [pair(5, 2), pair(6, 3), pair(2, 9), pair(4, 4)])
    chance = 1 / (1 + np.exp(-np.array([2.0, -1.0, 3.0, 0.0])))
    assert found["pairs"] == 4
    assert found["accuracy"] == pytest.approx((2 + 0.5) / 4)
    assert found["mean_margin"] == pytest.approx(1.0)
    assert found["brier"] == pytest.approx(((1 - chance) ** 2).mean())
    assert found["chosen_is_longer"] == 0.5
    assert found["accuracy_chosen_longer"] == 0.5
    assert found["accuracy_chosen_shorter"] == 1.0
    assert found["margin_length_correlation"] == pytest.approx(np.corrcoef([2, -1, 3, 0], [3, 3, -7, 0])[0, 1])


def test_a_model_that_says_what_it_knows_is_calibrated() -> None:
    certain = np.array([0.75] * 75 + [0.25] * 25)
    assert calibration_error(certain) == pytest.approx(0.0)
    assert calibration_error(np.array([0.99] * 75 + [0.01] * 25)) == pytest.approx(0.99 - 0.75)
    assert calibration_error(np.full(10, 1.0)) == pytest.approx(0.0)
    assert calibration_error(np.full(4, 0.5)) == pytest.approx(0.0), "a tie is right half of the time"


def test_what_there_is_none_of() -> None:
    assert accuracy(np.array([])) is None
    assert correlation(np.ones(3), np.arange(3.0)) is None
    assert correlation(np.arange(3.0), -np.arange(3.0)) == pytest.approx(-1)
