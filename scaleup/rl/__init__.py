"""This package does PPO: pure functions, a policy with values, placements of rewards, and a trainer without config or
launcher."""

from scaleup.config.schema import OptimizationConfig
from scaleup.config.stages.ppo import PPOSettings
from scaleup.models.rollout import response_lengths
from scaleup.rl.advantages import (
    adapted_kl_coef,
    gae,
    kl_estimate,
    log_ratio,
    masked_mean,
    policy_loss,
    response_mask,
    token_rewards,
    value_loss,
    whiten,
)
from scaleup.rl.policy import Policy
from scaleup.rl.rewards.interface import Rewards, Sample
from scaleup.rl.trainer import PPOTrainer

__all__ = [
    "OptimizationConfig",
    "PPOSettings",
    "PPOTrainer",
    "Policy",
    "Rewards",
    "Sample",
    "adapted_kl_coef",
    "gae",
    "kl_estimate",
    "log_ratio",
    "masked_mean",
    "policy_loss",
    "response_lengths",
    "response_mask",
    "token_rewards",
    "value_loss",
    "whiten",
]
