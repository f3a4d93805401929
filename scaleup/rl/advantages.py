"""This module holds pure functions from scores to advantages, which the algorithms share.

B responses of up to T tokens; masks (B, T) are true on a response's tokens, its EOS included, and come from positions,
never from token ids. Responses to one prompt stand side by side: G of them make a group."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch


def response_mask(lengths: torch.Tensor, width: int) -> torch.Tensor:
    """Return a mask (B, width), true on the first `lengths` (B,) positions of each row."""
    return torch.arange(width, device=lengths.device) < lengths[:, None]


def kl_estimate(log_ratio: torch.Tensor, kind: Literal["k1", "k2", "k3"]) -> torch.Tensor:
    """Return KL(p || q) in nats at each token, estimated from log p - log q of a token drawn from p, of any shape
    (Schulman 2020, "Approximating KL Divergence"). k1 is unbiased, k2 has a low variance, k3 has both and is never
    negative."""
    if kind == "k1":
        return log_ratio
    if kind == "k2":
        return log_ratio.square() / 2
    return torch.expm1(-log_ratio) + log_ratio


def token_rewards(scores: torch.Tensor, penalties: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Return token rewards (B, T): minus the penalty at each token, plus the score at the response's last token.

    r_t = -beta kl_t + [t = last] score (Ziegler et al. 2019, eq. 2). scores (B,), penalties (B, T) = beta kl_t in nats,
    mask (B, T) with at least one token a row."""
    rewards = torch.where(mask, -penalties, 0.0)
    last = mask.sum(dim=1, keepdim=True) - 1
    return rewards.scatter_add(1, last, scores[:, None].to(rewards.dtype))


def gae(
    rewards: torch.Tensor, values: torch.Tensor, mask: torch.Tensor, gamma: float, lam: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return advantages and returns (B, T) by generalized advantage estimation (Schulman et al. 2016, eq. 16).

    rewards, values, mask (B, T); values[:, t] is of the state before token t. The value after a response's last token
    is 0, also where a limit cut it off. What is outside the mask changes nothing; results there are 0."""
    advantages = torch.zeros_like(rewards)
    following = torch.zeros_like(rewards[:, 0])
    next_value = torch.zeros_like(following)
    for t in reversed(range(rewards.shape[1])):
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        following = torch.where(mask[:, t], delta + gamma * lam * following, 0.0)
        next_value = torch.where(mask[:, t], values[:, t], 0.0)
        advantages[:, t] = following
    return advantages, torch.where(mask, advantages + values, 0.0)


def masked_mean(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Return the mean, a scalar, of values (B, T) where the mask (B, T) is true."""
    return torch.where(mask, values, 0.0).sum() / mask.sum()


def whiten(values: torch.Tensor, mask: torch.Tensor, shift_mean: bool = True) -> torch.Tensor:
    """Return values (B, T) scaled to variance 1 over all masked positions, with mean 0 unless `shift_mean` is false; 0
    elsewhere. Statistics are of the global batch: the caller passes the rows of all processes. A single position, or no
    variance, gives 0."""
    mean = masked_mean(values, mask)
    centred = torch.where(mask, values - mean, 0.0)
    variance = centred.square().sum() / (mask.sum() - 1).clamp(min=1)
    white = centred * torch.rsqrt(variance + 1e-8)
    return white if shift_mean else torch.where(mask, white + mean, 0.0)


def returns_to_go(rewards: torch.Tensor, mask: torch.Tensor, gamma: float) -> torch.Tensor:
    """Return the sum (B, T) of a token's reward and those after it, discounted by `gamma` a token; 0 outside of the
    mask. rewards, mask (B, T)."""
    returns = torch.zeros_like(rewards)
    following = torch.zeros_like(rewards[:, 0])
    for t in reversed(range(rewards.shape[1])):
        following = torch.where(mask[:, t], rewards[:, t] + gamma * following, 0.0)
        returns[:, t] = following
    return returns


def group_means(scores: torch.Tensor, num_generations: int) -> torch.Tensor:
    """Return the mean (B,) of the scores (B,) of each response's group."""
    return scores.view(-1, num_generations).mean(dim=1).repeat_interleave(num_generations)


def group_spreads(scores: torch.Tensor, num_generations: int) -> torch.Tensor:
    """Return the standard deviation (B,) of the scores (B,) of each response's group, with Bessel's correction."""
    return scores.view(-1, num_generations).std(dim=1).repeat_interleave(num_generations)


def whole_rollout_spread(scores: torch.Tensor) -> torch.Tensor:
    """Return the standard deviation, a scalar, of all scores (B,); 0 of a single one."""
    return scores.std() if len(scores) > 1 else scores.new_zeros(())


def overlong_penalty(lengths: torch.Tensor, max_new_tokens: int, cache: int) -> torch.Tensor:
    """Return what is taken off the score (B,) of responses of `lengths` (B,) tokens: from 0 at max_new_tokens - cache
    up to 1 at max_new_tokens (Yu et al. 2025, DAPO, eq. 13)."""
    beyond = lengths.double() - (max_new_tokens - cache)
    return (beyond / cache).clamp(0.0, 1.0)


def weighted_sum(by_source: Sequence[torch.Tensor], weights: Sequence[float]) -> torch.Tensor:
    """Return the scores (B,) of several sources, (B,) each, added by their weights."""
    return torch.stack([weight * scores for weight, scores in zip(weights, by_source, strict=True)]).sum(dim=0)


def normalized_sum(by_source: Sequence[torch.Tensor], weights: Sequence[float], num_generations: int) -> torch.Tensor:
    """Return the weighted sum (B,) of the scores of several sources, (B,) each, of which each is brought to mean 0 and
    spread 1 first, within groups, or over the rollout where groups are of one response (Liu et al. 2026, GDPO): so no
    source outweighs the others by its scale."""
    return weighted_sum([_normalized(scores, num_generations) for scores in by_source], weights)


SPREAD_FLOOR = 1e-4
"""Is added to a spread that is divided by, as TRL does."""


def _normalized(scores: torch.Tensor, num_generations: int) -> torch.Tensor:
    if num_generations == 1:
        return (scores - scores.mean()) / (whole_rollout_spread(scores) + SPREAD_FLOOR)
    spreads = group_spreads(scores, num_generations) + SPREAD_FLOOR
    return (scores - group_means(scores, num_generations)) / spreads


def adapted_kl_coef(kl_coef: float, kl: float, target: float, num_responses: int, horizon: float) -> float:
    """Return the weight of the KL penalty after a rollout of `num_responses` with a mean KL of `kl` nats a response: a
    proportional controller whose error is clipped to 0.2 (Ziegler et al. 2019, section 2.2)."""
    error = min(max(kl / target - 1, -0.2), 0.2)
    return kl_coef * (1 + error * num_responses / horizon)
