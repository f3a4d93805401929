"""From scores to advantages: pure functions over a rollout. B responses of up to T tokens; masks (B, T) are true on a
response's tokens, its EOS included, and come from positions, never from token ids."""

from __future__ import annotations

from typing import Literal

import torch


def response_lengths(tokens: torch.Tensor, eos_ids: torch.Tensor, limits: torch.Tensor) -> torch.Tensor:
    """(B,) tokens of each response: up to its first EOS, which counts, or its limit.

    tokens (B, T) are what was generated, padded in any way behind the EOS; limits (B,)."""
    is_eos = torch.isin(tokens, eos_ids)
    first = torch.where(is_eos.any(dim=1), is_eos.int().argmax(dim=1) + 1, tokens.shape[1])
    return torch.minimum(first, limits)


def response_mask(lengths: torch.Tensor, width: int) -> torch.Tensor:
    """(B, width), true on the first `lengths` (B,) places."""
    return torch.arange(width, device=lengths.device) < lengths[:, None]


def kl_estimate(log_ratio: torch.Tensor, kind: Literal["k1", "k2", "k3"]) -> torch.Tensor:
    """KL(p || q) at each token from log p - log q of a token drawn from p (Schulman 2020, "Approximating KL
    Divergence"): k1 has no bias, k2 little spread, k3 both and is never negative. Any shape."""
    if kind == "k1":
        return log_ratio
    if kind == "k2":
        return log_ratio.square() / 2
    return torch.expm1(-log_ratio) + log_ratio


def token_rewards(scores: torch.Tensor, penalties: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """(B, T): minus the penalty at each token, and the score once, at the response's last token.

    r_t = -beta kl_t + [t = last] score (Ziegler et al. 2019, eq. 2). scores (B,), penalties (B, T), mask (B, T) with at
    least one token a row."""
    rewards = torch.where(mask, -penalties, 0.0)
    last = mask.sum(dim=1, keepdim=True) - 1
    return rewards.scatter_add(1, last, scores[:, None].to(rewards.dtype))


def gae(
    rewards: torch.Tensor, values: torch.Tensor, mask: torch.Tensor, gamma: float, lam: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Advantages and returns (B, T) by generalized advantage estimation (Schulman et al. 2016, eq. 16).

    values[t] is of the state before token t. Nothing follows a response's last token: its value there is 0, also where
    a limit cut it off. What stands behind the mask changes nothing; results there are 0."""
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
    return torch.where(mask, values, 0.0).sum() / mask.sum()


def whiten(values: torch.Tensor, mask: torch.Tensor, shift_mean: bool = True) -> torch.Tensor:
    """Spread 1 and, unless the mean is kept, mean 0 over all masked places (B, T); 0 elsewhere. Of the global batch:
    the caller hands in the rows of all processes. A single place, or no spread, leaves 0."""
    mean = masked_mean(values, mask)
    centred = torch.where(mask, values - mean, 0.0)
    variance = centred.square().sum() / (mask.sum() - 1).clamp(min=1)
    white = centred * torch.rsqrt(variance + 1e-8)
    return white if shift_mean else torch.where(mask, white + mean, 0.0)
