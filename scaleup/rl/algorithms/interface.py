"""This module holds what the loop asks of an algorithm."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from scaleup.rl.advantages import kl_estimate
from scaleup.rl.losses import level_ratio, log_ratio, policy_loss

Old = Mapping[str, torch.Tensor]
"""Maps names -> what is known of B responses from their rollout, (B, T) each: `logprobs`, `advantages`, and where the
run has them `ref_logprobs`, `values`, `returns`, and `kept` (1 on the tokens whose policy loss counts)."""


@dataclass(frozen=True)
class Rollout:
    """Holds what advantages are computed from, of B responses; 0 behind them."""

    rewards: torch.Tensor
    """Holds token rewards (B, T): the score at the last token, minus the KL penalty at each where that is one."""
    mask: torch.Tensor
    """Holds (B, T), true on a response's tokens."""
    scores: torch.Tensor
    """Holds scores (B,) after clipping and penalties."""
    values: torch.Tensor | None = None
    """Holds values (B, T) of the state before each token."""
    greedy_scores: torch.Tensor | None = None
    """Holds the score (B,) of the greedy response to each one's prompt."""


@dataclass(frozen=True)
class Estimates:
    """Holds what is learned from a rollout; 0 behind the responses."""

    rewards: torch.Tensor
    """Holds token rewards (B, T)."""
    advantages: torch.Tensor
    """Holds advantages (B, T)."""
    returns: torch.Tensor | None
    """Holds targets (B, T) of the values, where the algorithm learns some."""
    scores: torch.Tensor
    """Holds scores (B,) after clipping and penalties."""


@dataclass(frozen=True)
class LossTerms:
    """Holds the losses of the tokens of B responses, (B, T) each, to be minimised."""

    loss: torch.Tensor
    """Holds the whole loss of each token, but for the entropy bonus."""
    shown: dict[str, torch.Tensor]
    """Holds what metrics are made of."""


class Algorithm(ABC):
    """Turns rollouts into advantages, and log-probabilities into losses."""

    needs_values: ClassVar[bool] = False
    """Tells whether a value head learns beside the policy."""
    needs_greedy: ClassVar[bool] = False
    """Tells whether the greedy response to each prompt is scored too."""

    def __init__(self, settings: Any) -> None:
        self.settings = settings

    @abstractmethod
    def advantages(self, rollout: Rollout) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return advantages (B, T), and the targets (B, T) of values where there are some."""

    def loss(self, logprobs: torch.Tensor, values: torch.Tensor | None, old: Old, mask: torch.Tensor) -> LossTerms:
        """Return the loss of each token, of its log-probability (B, T) and the value (B, T) before it under the policy
        as it is now: the clipped surrogate loss, and the KL divergence to the reference where it is in the loss."""
        settings = self.settings
        log_ratios = log_ratio(logprobs, old["logprobs"])
        ratio = level_ratio(log_ratios, mask, settings.importance_sampling_level).exp()
        by_policy, clipped = policy_loss(ratio, old["advantages"], settings.clip_range, settings.delta)
        shown = {"policy": by_policy, "clipped": clipped, "log_ratios": log_ratios, "ratio": ratio.expand_as(mask)}
        shown |= {"clipped_low": clipped & (old["advantages"] < 0), "clipped_high": clipped & (old["advantages"] > 0)}
        loss = by_policy * old["kept"] if "kept" in old else by_policy
        if settings.kl_in == "loss" and settings.beta:
            kl = kl_estimate(log_ratio(logprobs, old["ref_logprobs"]), settings.kl_estimator)
            shown["kl"] = kl
            loss = loss + settings.beta * (kl * ratio if settings.use_bias_correction_kl else kl)
        return LossTerms(loss, shown)

    def failed_check(self, estimates: Estimates, mask: torch.Tensor) -> str | None:
        """Return which property of the algorithm's advantages does not hold; None if all do."""
        return None

    def response_advantages(self, advantages: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Return advantages (B, T) that each token of a response shares, of those (B,) of responses."""
        return torch.where(mask, advantages[:, None], 0.0)
