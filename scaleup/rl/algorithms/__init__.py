"""This package holds the algorithms of reinforcement learning, a module each: how advantages follow from a rollout, and
the loss of a token. The loop knows none of them."""

from __future__ import annotations

from scaleup.config.algorithms import (
    GRPOAlgorithm,
    PolicyGradient,
    PPOAlgorithm,
    ReinforcePPAlgorithm,
    ReMaxAlgorithm,
    RLOOAlgorithm,
)
from scaleup.rl.algorithms.grpo import GRPO
from scaleup.rl.algorithms.interface import Algorithm, Estimates, LossTerms, Old
from scaleup.rl.algorithms.ppo import PPO
from scaleup.rl.algorithms.reinforce_pp import ReinforcePP
from scaleup.rl.algorithms.remax import ReMax
from scaleup.rl.algorithms.rloo import RLOO

__all__ = ["GRPO", "PPO", "RLOO", "Algorithm", "Estimates", "LossTerms", "Old", "ReMax", "ReinforcePP", "algorithm_of"]

ALGORITHMS: dict[type[PolicyGradient], type[Algorithm]] = {
    PPOAlgorithm: PPO,
    GRPOAlgorithm: GRPO,
    RLOOAlgorithm: RLOO,
    ReinforcePPAlgorithm: ReinforcePP,
    ReMaxAlgorithm: ReMax,
}
"""Maps the class of an algorithm's settings -> the algorithm."""


def algorithm_of(settings: PolicyGradient) -> Algorithm:
    """Return the algorithm of some settings."""
    return ALGORITHMS[type(settings)](settings)
