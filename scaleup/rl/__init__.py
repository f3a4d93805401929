"""PPO: pure functions, a policy with values, placements of rewards, and a trainer without config or launcher."""

from scaleup.config.rl import PPOSettings
from scaleup.config.schema import OptimizationConfig
from scaleup.rl.advantages import (
    gae,
    kl_estimate,
    masked_mean,
    response_lengths,
    response_mask,
    token_rewards,
    whiten,
)
from scaleup.rl.kl_control import adapted_kl_coef
from scaleup.rl.losses import log_ratio, policy_loss, value_loss
from scaleup.rl.policy import Policy
from scaleup.rl.rewards import Rewards, Sample
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
