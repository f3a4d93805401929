"""This package does reinforcement learning: pure functions, algorithms, a policy, placements of rewards, and trainers
without config or launcher."""

from scaleup.config.algorithms import (
    GRPOAlgorithm,
    PPOAlgorithm,
    ReinforcePPAlgorithm,
    ReMaxAlgorithm,
    RLOOAlgorithm,
    RolloutSettings,
)
from scaleup.config.schema import OptimizationConfig, PolicyTrainConfig
from scaleup.config.stages.ppo import PPOSettings
from scaleup.models.rollout import response_lengths
from scaleup.rl.advantages import (
    adapted_kl_coef,
    gae,
    group_means,
    group_spreads,
    kl_estimate,
    masked_mean,
    normalized_sum,
    overlong_penalty,
    response_mask,
    returns_to_go,
    token_rewards,
    weighted_sum,
    whiten,
)
from scaleup.rl.algorithms.grpo import group_advantages
from scaleup.rl.algorithms.reinforce_pp import normalized_returns
from scaleup.rl.algorithms.remax import over_greedy
from scaleup.rl.algorithms.rloo import leave_one_out
from scaleup.rl.losses import level_ratio, log_ratio, of_high_entropy, policy_loss, token_weights, value_loss
from scaleup.rl.policy import Policy
from scaleup.rl.rewards.interface import Rewards, RewardSet, Sample
from scaleup.rl.trainer import GRPOTrainer, PPOTrainer, RLOOTrainer, RLTrainer

__all__ = [
    "GRPOAlgorithm",
    "GRPOTrainer",
    "OptimizationConfig",
    "PPOAlgorithm",
    "PPOSettings",
    "PPOTrainer",
    "Policy",
    "PolicyTrainConfig",
    "RLOOAlgorithm",
    "RLOOTrainer",
    "RLTrainer",
    "ReMaxAlgorithm",
    "ReinforcePPAlgorithm",
    "RewardSet",
    "Rewards",
    "RolloutSettings",
    "Sample",
    "adapted_kl_coef",
    "gae",
    "group_advantages",
    "group_means",
    "group_spreads",
    "kl_estimate",
    "leave_one_out",
    "level_ratio",
    "log_ratio",
    "masked_mean",
    "normalized_returns",
    "normalized_sum",
    "of_high_entropy",
    "over_greedy",
    "overlong_penalty",
    "policy_loss",
    "response_lengths",
    "response_mask",
    "returns_to_go",
    "token_rewards",
    "token_weights",
    "value_loss",
    "weighted_sum",
    "whiten",
]
