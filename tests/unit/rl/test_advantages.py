import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from scaleup.models.rollout import response_lengths
from scaleup.rl.advantages import (
    adapted_kl_coef,
    gae,
    kl_estimate,
    masked_mean,
    response_mask,
    token_rewards,
    whiten,
)


def doubles(*rows: list[float]) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float64)


@pytest.mark.parametrize(
    ("tokens", "eos", "limit", "length"),
    [
        ([5, 6, 2, 0, 0], [2], 5, 3),
        ([5, 6, 7, 8, 9], [2], 5, 5),
        ([5, 2, 2, 2, 2], [2], 5, 2),  # pad == eos: the first one is the end
        ([2, 5, 6, 7, 8], [2], 5, 1),
        ([5, 6, 3, 2, 0], [2, 3], 5, 3),
        ([5, 6, 7, 2, 0], [2], 2, 2),
    ],
)
def test_a_response_ends_with_its_first_end_or_its_limit(
    tokens: list[int], eos: list[int], limit: int, length: int
) -> None:
    lengths = response_lengths(torch.tensor([tokens]), torch.tensor(eos), torch.tensor([limit]))
    assert lengths.tolist() == [length]
    assert response_mask(lengths, 5).tolist() == [[True] * length + [False] * (5 - length)]


def test_kl_estimates() -> None:
    ratio = torch.tensor([-0.3, 0.0])
    assert kl_estimate(ratio, "k1").tolist() == pytest.approx([-0.3, 0.0])
    assert kl_estimate(ratio, "k2").tolist() == pytest.approx([0.045, 0.0])
    assert kl_estimate(ratio, "k3").tolist() == pytest.approx([math.exp(0.3) - 0.3 - 1, 0.0])


@given(st.lists(st.floats(0.01, 1), min_size=3, max_size=6), st.lists(st.floats(0.01, 1), min_size=3, max_size=6))
def test_k1_and_k3_are_the_kl_on_average(one: list[float], other: list[float]) -> None:
    """Over all tokens, each with its probability: so the signs and the direction are right."""
    size = min(len(one), len(other))
    p, q = (torch.tensor(part[:size], dtype=torch.float64) for part in (one, other))
    p, q = p / p.sum(), q / q.sum()
    kl = float((p * (p / q).log()).sum())
    for kind in ("k1", "k3"):
        assert float((p * kl_estimate((p / q).log(), kind)).sum()) == pytest.approx(kl, abs=1e-9)  # type: ignore[arg-type]


def test_the_score_comes_once_and_last() -> None:
    mask = torch.tensor([[True, True, False], [True, True, True]])
    rewards = token_rewards(torch.tensor([2.0, -1.0]), torch.tensor([[0.1, 0.2, 9.0], [0.1, 0.2, 0.3]]), mask)
    assert torch.allclose(rewards, torch.tensor([[-0.1, 1.8, 0.0], [-0.1, -0.2, -1.3]]))


def test_gae_without_values() -> None:
    rewards, mask = doubles([0, 0, 1]), torch.ones(1, 3, dtype=torch.bool)
    advantages, returns = gae(rewards, torch.zeros_like(rewards), mask, 1.0, 0.95)
    assert torch.allclose(advantages, doubles([0.9025, 0.95, 1]))
    assert torch.allclose(returns, advantages)


def test_gae_by_hand() -> None:
    rewards, values = doubles([0.1, -0.2, 0.5, 1]), doubles([0.3, 0.1, -0.4, 0.2])
    mask = torch.ones(1, 4, dtype=torch.bool)
    advantages, returns = gae(rewards, values, mask, 1.0, 1.0)
    assert torch.allclose(returns, doubles([1.4, 1.3, 1.5, 1]))
    assert torch.allclose(advantages, doubles([1.1, 1.2, 1.9, 0.8]))
    deltas, _ = gae(rewards, values, mask, 1.0, 0.0)
    assert torch.allclose(deltas, doubles([0.1 + 0.1 - 0.3, -0.2 - 0.4 - 0.1, 0.5 + 0.2 + 0.4, 1 - 0.2]))


def test_a_perfect_critic_leaves_nothing() -> None:
    rewards, mask = doubles([0.5, -1, 2]), torch.ones(1, 3, dtype=torch.bool)
    advantages, returns = gae(rewards, doubles([1.5, 1, 2]), mask, 1.0, 0.7)
    assert torch.allclose(advantages, torch.zeros_like(rewards))
    assert torch.allclose(returns, doubles([1.5, 1, 2]))


@given(st.floats(-1e6, 1e6), st.floats(-1e6, 1e6))
def test_what_stands_behind_the_end_changes_nothing(junk: float, more: float) -> None:
    mask = torch.tensor([[True, True, False, False]])
    clean = gae(doubles([0.1, 1, 0, 0]), doubles([0.2, 0.3, 0, 0]), mask, 0.9, 0.8)
    other = gae(doubles([0.1, 1, junk, more]), doubles([0.2, 0.3, more, junk]), mask, 0.9, 0.8)
    for one, another in zip(clean, other, strict=True):
        assert torch.equal(one, another)


def test_a_discount_counts_from_each_token() -> None:
    mask = torch.ones(1, 3, dtype=torch.bool)
    _, returns = gae(doubles([0, 0, 1]), torch.zeros(1, 3, dtype=torch.float64), mask, 0.5, 1.0)
    assert torch.allclose(returns, doubles([0.25, 0.5, 1]))


def test_whitening_is_over_all_masked_places() -> None:
    mask = torch.tensor([[True, True, False], [True, True, True]])
    values = doubles([1, 2, 1e9], [3, 4, 5])
    white = whiten(values, mask)
    assert float(white[mask].mean()) == pytest.approx(0, abs=1e-12)
    assert float(white[mask].std()) == pytest.approx(1, abs=1e-6)
    assert float(white[0, 2]) == 0
    assert float(masked_mean(values, mask)) == 3
    kept = whiten(values, mask, shift_mean=False)
    assert float(kept[mask].mean()) == pytest.approx(3)
    assert float(kept[0, 2]) == 0


def test_whitening_of_one_place_or_of_equal_ones_is_nothing() -> None:
    one = torch.tensor([[True, False]])
    assert whiten(doubles([7, 3]), one).tolist() == [[0, 0]]
    assert whiten(doubles([7, 7]), torch.ones(1, 2, dtype=torch.bool)).abs().max() == 0


def test_the_kl_controller() -> None:
    assert adapted_kl_coef(0.15, 12.0, 6.0, 64, 10_000) == pytest.approx(0.15 * 1.00128)
    assert adapted_kl_coef(0.15, 0.0, 6.0, 64, 10_000) == pytest.approx(0.15 * (1 - 0.00128))
    assert adapted_kl_coef(0.15, 6.0, 6.0, 64, 10_000) == 0.15
    assert adapted_kl_coef(0.15, 6.6, 6.0, 100, 1000) == pytest.approx(0.15 * 1.01)
