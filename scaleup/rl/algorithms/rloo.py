"""REINFORCE leave-one-out (Kool et al. 2019; of language models: Ahmadian et al. 2024): a response is one action, and
its advantage is over the mean score of its prompt's other responses."""

from __future__ import annotations

import torch

from scaleup.config.algorithms import RLOOAlgorithm
from scaleup.rl.advantages import SPREAD_FLOOR, group_means, whole_rollout_spread
from scaleup.rl.algorithms.grpo import unbalanced_groups
from scaleup.rl.algorithms.interface import Algorithm, Estimates, Rollout


def leave_one_out(scores: torch.Tensor, num_generations: int) -> torch.Tensor:
    """Return the advantages (B,) of scores (B,): less the mean of the group's others (Ahmadian et al. 2024, eq. 8)."""
    means = group_means(scores, num_generations)
    return (scores - means) * num_generations / (num_generations - 1)


class RLOO(Algorithm):
    settings: RLOOAlgorithm

    def advantages(self, rollout: Rollout) -> tuple[torch.Tensor, None]:
        of_responses = leave_one_out(rollout.rewards.sum(dim=1), self.settings.num_generations)
        if self.settings.normalize_advantages:
            centred = of_responses - of_responses.mean()
            of_responses = centred / (whole_rollout_spread(of_responses) + SPREAD_FLOOR)
        return self.response_advantages(of_responses, rollout.mask), None

    def failed_check(self, estimates: Estimates, mask: torch.Tensor) -> str | None:
        return unbalanced_groups(estimates.advantages, self.settings.num_generations)
