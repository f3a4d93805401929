"""Group relative policy optimization (Shao et al. 2024): a response's advantage is over the mean score of its prompt's
responses. With its settings: DAPO (Yu et al. 2025), Dr. GRPO (Liu et al. 2025), GSPO (Zheng et al. 2025)."""

from __future__ import annotations

from typing import Literal

import torch

from scaleup.config.algorithms import GRPOAlgorithm
from scaleup.rl.advantages import SPREAD_FLOOR, group_means, group_spreads, whole_rollout_spread
from scaleup.rl.algorithms.interface import Algorithm, Estimates, Rollout


def group_advantages(
    scores: torch.Tensor, num_generations: int, scale: Literal["group", "batch", "none"] = "group"
) -> torch.Tensor:
    """Return the advantages (B,) of scores (B,): less the group's mean, divided by its spread (section 4.1.2), by that
    of all scores, or not (Liu et al. 2025, Dr. GRPO, section 3.2)."""
    advantages = scores - group_means(scores, num_generations)
    if scale == "none":
        return advantages
    spread = group_spreads(scores, num_generations) if scale == "group" else whole_rollout_spread(scores)
    return advantages / (spread + SPREAD_FLOOR)


class GRPO(Algorithm):
    settings: GRPOAlgorithm

    def advantages(self, rollout: Rollout) -> tuple[torch.Tensor, None]:
        settings, totals = self.settings, rollout.rewards.sum(dim=1)
        of_responses = group_advantages(totals, settings.num_generations, settings.scale_rewards)
        return self.response_advantages(of_responses, rollout.mask), None

    def failed_check(self, estimates: Estimates, mask: torch.Tensor) -> str | None:
        return unbalanced_groups(estimates.advantages, self.settings.num_generations)


def unbalanced_groups(advantages: torch.Tensor, num_generations: int) -> str | None:
    """Return a sentence if the advantages (B, T) of some group's responses do not sum to 0; None if all do."""
    sums = advantages[:, 0].view(-1, num_generations).sum(dim=1).abs()
    bound = 1e-6 * (1 + float(advantages.abs().max())) * num_generations
    return (
        f"the advantages of a prompt's responses sum to {float(sums.max()):.2e}" if float(sums.max()) > bound else None
    )
