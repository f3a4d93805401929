"""Proximal policy optimization (Schulman et al. 2017; of language models: Ziegler et al. 2019): advantages are over
the values of a head that learns beside the policy."""

from __future__ import annotations

import torch

from scaleup.config.algorithms import PPOAlgorithm
from scaleup.rl.advantages import gae, whiten
from scaleup.rl.algorithms.interface import Algorithm, LossTerms, Old, Rollout
from scaleup.rl.losses import value_loss


class PPO(Algorithm):
    needs_values = True
    settings: PPOAlgorithm

    def advantages(self, rollout: Rollout) -> tuple[torch.Tensor, torch.Tensor | None]:
        settings, mask = self.settings, rollout.mask
        assert rollout.values is not None
        rewards = whiten(rollout.rewards, mask, shift_mean=False) if settings.whiten_rewards else rollout.rewards
        advantages, returns = gae(rewards, rollout.values, mask, settings.gamma, settings.lam)
        return (whiten(advantages, mask) if settings.whiten_advantages else advantages), returns

    def loss(self, logprobs: torch.Tensor, values: torch.Tensor | None, old: Old, mask: torch.Tensor) -> LossTerms:
        """Return the policy's loss + vf_coef x the value loss (eq. 9, but for the entropy bonus)."""
        by_policy = super().loss(logprobs, values, old, mask)
        assert values is not None
        by_value, clipped = value_loss(values, old["values"], old["returns"], self.settings.cliprange_value)
        shown = by_policy.shown | {"value": by_value, "value_clipped": clipped}
        return LossTerms(by_policy.loss + self.settings.vf_coef * by_value, shown)
