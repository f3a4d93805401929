"""Advantages and losses of each algorithm, against closed forms and the papers' numbers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import TypeAdapter

from scaleup.config.algorithms import AlgorithmSettings
from scaleup.rl.advantages import (
    group_means,
    normalized_sum,
    overlong_penalty,
    returns_to_go,
    token_rewards,
    weighted_sum,
)
from scaleup.rl.algorithms import algorithm_of
from scaleup.rl.algorithms.grpo import group_advantages
from scaleup.rl.algorithms.interface import Algorithm, Estimates, Rollout
from scaleup.rl.algorithms.reinforce_pp import normalized_returns
from scaleup.rl.algorithms.remax import over_greedy
from scaleup.rl.algorithms.rloo import leave_one_out

MASK = torch.tensor([[True, True, False], [True, True, True], [True, False, False], [True, True, True]])
SCORES = torch.tensor([1.0, 3.0, 0.0, 8.0], dtype=torch.float64)
TYPES = ("ppo", "grpo", "rloo", "reinforce_pp", "remax")


def algorithm(kind: str, **settings: Any) -> Algorithm:
    return algorithm_of(TypeAdapter[Any](AlgorithmSettings).validate_python({"type": kind, **settings}))


def rollout(penalty: float = 0.0, **parts: Any) -> Rollout:
    rewards = token_rewards(SCORES, torch.full(MASK.shape, penalty, dtype=torch.float64), MASK)
    return Rollout(rewards, MASK, SCORES, **parts)


def test_scores_over_the_mean_of_a_group() -> None:
    """Groups (1, 3) and (0, 8): means 2 and 4, spreads sqrt(2) and sqrt(32)."""
    assert group_advantages(SCORES, 2, "none").tolist() == [-1, 1, -4, 4]
    scaled = group_advantages(SCORES, 2, "group")
    assert scaled.tolist() == pytest.approx([-1 / 2**0.5, 1 / 2**0.5, -4 / 32**0.5, 4 / 32**0.5], rel=1e-4)
    spread = float(SCORES.std())
    of_all = group_advantages(SCORES, 2, "batch")
    assert of_all.tolist() == pytest.approx([each / spread for each in (-1, 1, -4, 4)], rel=1e-4)
    assert group_advantages(torch.ones(4, dtype=torch.float64), 2).tolist() == [0, 0, 0, 0]


def test_scores_over_those_of_the_others() -> None:
    """Of three responses with scores 1, 2, 6: over (2 + 6) / 2, (1 + 6) / 2 and (1 + 2) / 2."""
    assert leave_one_out(torch.tensor([1.0, 2.0, 6.0]), 3).tolist() == pytest.approx([-3, -1.5, 4.5])


def test_rewards_to_come() -> None:
    rewards = torch.tensor([[1.0, 2.0, 4.0]])
    whole = torch.ones(1, 3, dtype=torch.bool)
    assert returns_to_go(rewards, whole, 1.0).tolist() == [[7, 6, 4]]
    assert returns_to_go(rewards, whole, 0.5).tolist() == [[3, 4, 4]]
    assert returns_to_go(rewards, torch.tensor([[True, True, False]]), 1.0).tolist() == [[3, 2, 0]]


def test_normalised_rewards_to_come() -> None:
    """A penalty at each token makes those of the beginning less than those of the end; with groups the mean of the
    group goes off first."""
    rewards = rollout(penalty=0.5).rewards
    plain = normalized_returns(rewards, MASK, 1.0)
    returns = returns_to_go(rewards, MASK, 1.0)
    of_all = returns[MASK]
    assert plain[MASK].tolist() == pytest.approx(((of_all - of_all.mean()) / of_all.std()).tolist())
    assert not plain[~MASK].any()
    grouped = normalized_returns(rewards, MASK, 1.0, num_generations=2)
    centred = (returns - group_means(rewards.sum(dim=1), 2)[:, None])[MASK]
    assert grouped[MASK].tolist() == pytest.approx(((centred - centred.mean()) / centred.std()).tolist())


def test_rewards_to_come_over_the_greedy_response() -> None:
    greedy = torch.tensor([2.0, 2.0, 1.0, 1.0], dtype=torch.float64)
    advantages = over_greedy(rollout().rewards, greedy, MASK)
    assert advantages[:, 0].tolist() == [-1, 1, -1, 7]
    assert advantages[1].tolist() == [1, 1, 1] and not advantages[~MASK].any()


def test_a_penalty_in_the_reward_counts_over_the_whole_response() -> None:
    """2, 3, 1 and 3 tokens at 0.5 each: scores of 0, 1.5, -0.5 and 6.5."""
    advantages, returns = algorithm("rloo").advantages(rollout(penalty=0.5))
    assert returns is None
    assert advantages[:, 0].tolist() == pytest.approx([-1.5, 1.5, -7, 7])
    assert advantages[0].tolist() == pytest.approx([-1.5, -1.5, 0])


@pytest.mark.parametrize(("kind", "settings"), [("grpo", {"num_generations": 2}), ("rloo", {}), ("reinforce_pp", {})])
def test_what_must_hold_of_advantages_is_checked(kind: str, settings: dict[str, Any]) -> None:
    chosen = algorithm(kind, **settings)
    advantages, _ = chosen.advantages(rollout())
    good = Estimates(rollout().rewards, advantages, None, SCORES)
    assert chosen.failed_check(good, MASK) is None
    bad = Estimates(rollout().rewards, advantages + 0.1 * MASK, None, SCORES)
    assert "sum to" in (chosen.failed_check(bad, MASK) or "") or "mean" in (chosen.failed_check(bad, MASK) or "")


def test_only_ppo_needs_values_and_only_remax_greedy_responses() -> None:
    assert [kind for kind in TYPES if algorithm(kind).needs_values] == ["ppo"]
    assert [kind for kind in TYPES if algorithm(kind).needs_greedy] == ["remax"]


def test_a_penalty_of_length_grows_towards_the_limit() -> None:
    """DAPO, eq. 13, with a limit of 100 tokens and a cache of 20."""
    lengths = torch.tensor([10, 80, 85, 90, 100])
    assert overlong_penalty(lengths, 100, 20).tolist() == [0, 0, 0.25, 0.5, 1]


def test_rewards_of_another_scale_count_alike_once_normalised() -> None:
    by_source = [torch.tensor([0.0, 1.0, 5.0, 7.0]), torch.tensor([100.0, 0.0, 0.0, 900.0])]
    assert weighted_sum(by_source, [1.0, 0.5]).tolist() == [50, 1, 5, 457]
    grouped = normalized_sum(by_source, [1.0, 0.5], 2)
    assert grouped.tolist() == pytest.approx([each * 0.5**0.5 for each in (-0.5, 0.5, -1.5, 1.5)], rel=1e-3)
    assert normalized_sum(by_source, [1.0, 0.0], 1).tolist() == pytest.approx([-0.983, -0.681, 0.529, 1.135], abs=1e-3)


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("level", ["token", "sequence", "trajectory"])
def test_no_gradient_comes_from_behind_a_response(kind: str, level: str) -> None:
    """And at a ratio of 1 the gradient of the policy's loss is minus the advantage, of a token's own level."""
    chosen = algorithm(kind, importance_sampling_level=level)
    logprobs = torch.zeros(MASK.shape, dtype=torch.float64, requires_grad=True)
    zeros = torch.zeros(MASK.shape, dtype=torch.float64)
    advantages = torch.where(MASK, torch.tensor([1.0, -2.0, 3.0, 4.0], dtype=torch.float64)[:, None], 0.0)
    old = {"logprobs": zeros, "advantages": advantages, "values": zeros, "returns": zeros, "ref_logprobs": zeros}
    chosen.loss(logprobs, zeros, old, MASK).loss[MASK].sum().backward()
    assert logprobs.grad is not None and not logprobs.grad[~MASK].any()
    lengths = MASK.sum(dim=1, keepdim=True)
    factor = {"token": torch.ones_like(lengths), "sequence": torch.ones_like(lengths), "trajectory": lengths}[level]
    assert torch.allclose(logprobs.grad, -advantages * factor)


@pytest.mark.parametrize("kind", ["grpo", "rloo"])
def test_the_kl_divergence_in_the_loss_has_a_gradient(kind: str) -> None:
    """Of k3 = exp(-d) + d - 1 with d = log pi - log pi_ref: 1 - exp(-d), and with the ratio as a factor, at a ratio of
    1, that plus k3."""
    d = torch.tensor([[0.3, -0.2, 0.0]], dtype=torch.float64)
    k3 = torch.expm1(-d) + d
    whole = torch.ones(1, 3, dtype=torch.bool)
    for corrected in (False, True):
        keys = {"kl_in": "loss", "kl_estimator": "k3", "beta": 0.5, "use_bias_correction_kl": corrected}
        logprobs = torch.zeros(1, 3, dtype=torch.float64, requires_grad=True)
        old = {"logprobs": logprobs.detach(), "advantages": torch.zeros(1, 3), "ref_logprobs": -d}
        chosen = algorithm(kind, **keys, importance_sampling_level="token")
        terms = chosen.loss(logprobs, None, old, whole)
        assert torch.allclose(terms.shown["kl"], k3)
        terms.loss.sum().backward()
        assert logprobs.grad is not None
        assert torch.allclose(logprobs.grad, 0.5 * (1 - (-d).exp() + corrected * k3))
