"""This module holds the maths of PPO: pure functions from scores to advantages, and from advantages to losses.

B responses of up to T tokens; masks (B, T) are true on a response's tokens, its EOS included, and come from positions,
never from token ids. Losses are per token and of any shape: the caller masks, sums and divides by the number of tokens
of the global batch."""

from __future__ import annotations

from typing import Literal

import torch

LOG_RATIO_LIMIT = 20.0
"""Bounds the absolute log-ratio in nats; exp() of more would leave float32's useful range, and no step that still
learns gets there."""


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


def log_ratio(logprobs: torch.Tensor, old_logprobs: torch.Tensor) -> torch.Tensor:
    """Return log pi(a|s) - log pi_old(a|s) in nats, clamped to what exp() can take. The tensors may be of any shape."""
    return (logprobs - old_logprobs).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)


def policy_loss(ratio: torch.Tensor, advantages: torch.Tensor, cliprange: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the clipped surrogate loss, to be minimised, and whether clipping decided it (Schulman et al. 2017, eq.
    7).

    Two tensors of one shape with `ratio` = pi(a|s) / pi_old(a|s)."""
    free = -advantages * ratio
    clipped = -advantages * ratio.clamp(1 - cliprange, 1 + cliprange)
    return torch.maximum(free, clipped), clipped > free


def value_loss(
    values: torch.Tensor, old_values: torch.Tensor, returns: torch.Tensor, cliprange: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return half the squared error of values clipped to `cliprange` around those of the rollout, and whether clipping
    decided it (Huang et al. 2024, "The N implementation details of RLHF with PPO", detail 9 of the PPO part). The
    tensors may be of any shape."""
    clipped = old_values + (values - old_values).clamp(-cliprange, cliprange)
    free_error, clipped_error = (values - returns).square(), (clipped - returns).square()
    return torch.maximum(free_error, clipped_error) / 2, clipped_error > free_error


def adapted_kl_coef(kl_coef: float, kl: float, target: float, num_responses: int, horizon: float) -> float:
    """Return the weight of the KL penalty after a rollout of `num_responses` with a mean KL of `kl` nats a response: a
    proportional controller whose error is clipped to 0.2 (Ziegler et al. 2019, section 2.2)."""
    error = min(max(kl / target - 1, -0.2), 0.2)
    return kl_coef * (1 + error * num_responses / horizon)
