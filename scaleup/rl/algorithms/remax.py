"""ReMax (Li et al. 2024): the rewards to come are over the score of the greedy response to the same prompt."""

from __future__ import annotations

import torch

from scaleup.config.algorithms import ReMaxAlgorithm
from scaleup.rl.advantages import returns_to_go
from scaleup.rl.algorithms.interface import Algorithm, Rollout


def over_greedy(rewards: torch.Tensor, greedy_scores: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Return advantages (B, T) of token rewards (B, T): returns less the score (B,) of the greedy response."""
    return torch.where(mask, returns_to_go(rewards, mask, 1.0) - greedy_scores[:, None], 0.0)


class ReMax(Algorithm):
    needs_greedy = True
    settings: ReMaxAlgorithm

    def advantages(self, rollout: Rollout) -> tuple[torch.Tensor, None]:
        assert rollout.greedy_scores is not None
        return over_greedy(rollout.rewards, rollout.greedy_scores, rollout.mask), None
