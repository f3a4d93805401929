"""PPO's losses at each token: pure functions of any shape. Who calls them masks, sums and divides by the number of
tokens of the global batch."""

from __future__ import annotations

import torch

LOG_RATIO_LIMIT = 20.0
"""exp() of more would leave float32's useful range; no step that is still learning gets there."""


def log_ratio(logprobs: torch.Tensor, old_logprobs: torch.Tensor) -> torch.Tensor:
    """log pi(a|s) - log pi_old(a|s), kept within a range that exp() can take."""
    return (logprobs - old_logprobs).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)


def policy_loss(ratio: torch.Tensor, advantages: torch.Tensor, cliprange: float) -> tuple[torch.Tensor, torch.Tensor]:
    """The clipped surrogate, to be minimised, and where clipping was what counted (Schulman et al. 2017, eq. 7)."""
    free = -advantages * ratio
    clipped = -advantages * ratio.clamp(1 - cliprange, 1 + cliprange)
    return torch.maximum(free, clipped), clipped > free


def value_loss(
    values: torch.Tensor, old_values: torch.Tensor, returns: torch.Tensor, cliprange: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Half the squared error of a value that may move by `cliprange` in a rollout, and where clipping counted (Huang et
    al. 2024, "The N implementation details of RLHF with PPO", detail 9 of the PPO part)."""
    clipped = old_values + (values - old_values).clamp(-cliprange, cliprange)
    free_error, clipped_error = (values - returns).square(), (clipped - returns).square()
    return torch.maximum(free_error, clipped_error) / 2, clipped_error > free_error
