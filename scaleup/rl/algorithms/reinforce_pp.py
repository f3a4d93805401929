"""REINFORCE++ (Hu et al. 2025): the rewards to come stand in for advantages, normalised over all tokens of the rollout.
With several responses to a prompt, scores are less the mean of their group first (REINFORCE++-baseline)."""

from __future__ import annotations

import torch

from scaleup.config.algorithms import ReinforcePPAlgorithm
from scaleup.rl.advantages import group_means, masked_mean, returns_to_go, whiten
from scaleup.rl.algorithms.interface import Algorithm, Estimates, Rollout


def normalized_returns(
    rewards: torch.Tensor, mask: torch.Tensor, gamma: float, num_generations: int = 1
) -> torch.Tensor:
    """Return advantages (B, T) of token rewards (B, T): returns, less the group's mean reward where there
    are groups, with mean 0 and variance 1 over the mask (Hu et al. 2025)."""
    returns = returns_to_go(rewards, mask, gamma)
    if num_generations > 1:
        returns = torch.where(mask, returns - group_means(rewards.sum(dim=1), num_generations)[:, None], 0.0)
    return whiten(returns, mask)


class ReinforcePP(Algorithm):
    settings: ReinforcePPAlgorithm

    def advantages(self, rollout: Rollout) -> tuple[torch.Tensor, None]:
        settings = self.settings
        return normalized_returns(rollout.rewards, rollout.mask, settings.gamma, settings.num_generations), None

    def failed_check(self, estimates: Estimates, mask: torch.Tensor) -> str | None:
        mean = abs(float(masked_mean(estimates.advantages, mask)))
        return f"advantages have the mean {mean:.2e} over all tokens, not 0" if mean > 1e-6 else None
