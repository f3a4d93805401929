"""This module holds pure functions from log-probabilities and advantages to the loss of a token, which the algorithms
share. Losses are of any shape: the caller masks, weighs and sums."""

from __future__ import annotations

from typing import Literal

import torch

LOG_RATIO_LIMIT = 20.0
"""Bounds the absolute log-ratio in nats; exp() of more would leave float32's useful range, and no step that still
learns gets there."""


def log_ratio(logprobs: torch.Tensor, old_logprobs: torch.Tensor) -> torch.Tensor:
    """Return log pi(a|s) - log pi_old(a|s) in nats, clamped to what exp() can take. The tensors may be of any shape."""
    return (logprobs - old_logprobs).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)


def level_ratio(
    log_ratios: torch.Tensor, mask: torch.Tensor, level: Literal["token", "sequence", "trajectory"]
) -> torch.Tensor:
    """Return log-ratios (B, T) of tokens, or the one (B, 1) of each response that stands for all of them: their mean
    over the mask (B, T), which is the logarithm of the geometric mean (Zheng et al. 2025, GSPO, eq. 7), or their
    sum."""
    if level == "token":
        return log_ratios
    total = torch.where(mask, log_ratios, 0.0).sum(dim=1, keepdim=True)
    if level == "trajectory":
        return total.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
    return total / mask.sum(dim=1, keepdim=True).clamp(min=1)


def policy_loss(
    ratio: torch.Tensor, advantages: torch.Tensor, clip_range: tuple[float, float], delta: float | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the clipped surrogate loss, to be minimised, and whether clipping decided it (Schulman et al. 2017, eq.
    7).

    Two tensors of one shape, or a `ratio` (B, 1), with `ratio` = pi(a|s) / pi_old(a|s); `clip_range`: its lower and
    upper bound, which differ from 1 by as much or not (Yu et al. 2025, DAPO, eq. 8). `delta` bounds it from above also
    where the advantage is negative (Prime Intellect 2025, INTELLECT-2)."""
    free = -advantages * (ratio if delta is None else ratio.clamp(max=delta))
    clipped = -advantages * ratio.clamp(*clip_range)
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


def token_weights(
    mask: torch.Tensor, loss_type: Literal["token", "sequence", "constant"], max_new_tokens: int
) -> tuple[torch.Tensor | None, torch.Tensor]:
    """Return the weights (B, T) of token losses, None where each counts 1, and the share (B,) of each response in what
    their weighted sum is divided by, so that the quotient is the mean over tokens, over responses of the means over
    their tokens, or over as many tokens as B responses may have. The mask (B, T) is of the tokens that count."""
    lengths = mask.sum(dim=1)
    if loss_type == "token":
        return None, lengths
    if loss_type == "sequence":
        return mask / lengths[:, None].clamp(min=1), torch.ones_like(lengths)
    return None, torch.full_like(lengths, max_new_tokens)


def of_high_entropy(entropies: torch.Tensor, mask: torch.Tensor, quantile: float) -> torch.Tensor:
    """Return a mask (B, T) of the share `quantile` of the mask's tokens whose entropies (B, T) are highest (Wang et al.
    2025, "Beyond the 80/20 rule")."""
    counted = entropies[mask]
    if not counted.numel():
        return mask
    return mask & (entropies >= torch.quantile(counted, 1 - quantile))
