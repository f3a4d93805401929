"""This module holds the config of PPO."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from scaleup.config.adapters import AdapterConfig
from scaleup.config.fields import Fraction, NotNegative, Positive
from scaleup.config.reward_source import RewardSource
from scaleup.config.schema import (
    Count,
    EvaluationConfig,
    GenerationConfig,
    Int,
    Section,
)
from scaleup.config.stages.base import TrainingConfig


class PPOSettings(Section):
    """Holds the settings of proximal policy optimization (Schulman et al. 2017) of language models. A step of the run
    is a rollout: responses to some prompts, their rewards, and a few passes over them."""

    num_rollouts: Count
    rollout_batch_size: Count = Field(64, description="Prompts a rollout, over all processes.")
    num_ppo_epochs: Count = Field(4, description="Passes over a rollout.")
    num_mini_batches: Count = Field(1, description="Optimizer steps a pass.")
    max_new_tokens: Count = Field(48, description="Tokens of a response, at most.")
    response_length_min: Count | None = Field(
        None, description="Draw each response's limit evenly between this and max_new_tokens."
    )
    temperature: Positive = 1.0
    kl_coef: NotNegative = Field(0.05, description="Weight of the penalty on leaving the reference model.")
    kl_controller: Literal["fixed", "adaptive"] = Field(
        "fixed", description="adaptive: kl_coef moves until the KL is kl_target (Ziegler et al. 2019)."
    )
    kl_target: Positive = Field(6.0, description="Nats a response.")
    kl_horizon: Positive = Field(10_000.0, description="Responses over which kl_coef adapts.")
    kl_estimator: Literal["k1", "k3"] = Field("k1", description="Of the penalty at a token (Schulman 2020).")
    gamma: Fraction = 1.0
    lam: Fraction = 0.95
    cliprange: Positive = 0.2
    cliprange_value: Positive = 0.2
    vf_coef: NotNegative = Field(0.1, description="Weight of the value loss.")
    entropy_coef: NotNegative = Field(0.0, description="Weight of the entropy bonus.")
    whiten_advantages: bool = True
    whiten_rewards: bool = False
    target_kl: Positive | None = Field(
        None, description="End the passes over a rollout when the policy has moved so far: mean approximate KL a token."
    )
    reward_clip: Positive | None = Field(None, description="Scores are cut to this size, after normalisation.")
    missing_eos_penalty: NotNegative | None = Field(
        None, description="Taken off the score of a response that ran into its limit."
    )
    value_model: Literal["head", "separate"] = Field(
        "head", description="A head on the policy's trunk, or a trunk of its own that starts as the policy's."
    )
    self_checks: bool = Field(True, description="Stop when what must hold in every rollout does not.")
    num_samples: Annotated[Int, Field(ge=0)] = Field(
        8, description="Held-out responses kept as text, before and after."
    )

    @property
    def num_optimizer_steps(self) -> int:
        """Returns the optimizer steps of a run that `target_kl` does not shorten: rollouts x passes x mini-batches."""
        return self.num_rollouts * self.num_ppo_epochs * self.num_mini_batches


class PPOConfig(TrainingConfig):
    """Trains a policy by reinforcement learning from a reward: `model` and `parallel` are the policy's, `reward` may be
    a group of its own. Rows give prompts; those of data.test are held out, and answered before and after."""

    stand_ins: ClassVar[dict[str, Any]] = {"ppo": {"num_rollouts": 1}, "num_rollouts": 1, "reward": {}}

    free_on_resume: ClassVar[frozenset[str]] = frozenset(
        {
            "ppo.self_checks",
            "reward.placement",
            "reward.url",
            "reward.parallel",
            "reward.own_nodes",
            "reward.batch_size",
            "reward.timeout_seconds",
            "reward.reconnect_seconds",
            "reward.bridge_port",
            "reward.max_restarts",
        }
    )
    plans_its_batch: ClassVar[bool] = True

    stage: Literal["ppo"]
    ppo: PPOSettings
    reward: RewardSource
    adapter: AdapterConfig | None = Field(
        None, description="Train this instead of the whole model; the reference is the model without it."
    )
    evaluation: EvaluationConfig = Field(
        default_factory=EvaluationConfig, description="What `scaleup evaluate RUN` measures."
    )
    generation: GenerationConfig | None = Field(
        None, description="How it answers then; by default greedily, with up to ppo.max_new_tokens tokens."
    )

    @property
    def reward_group(self) -> RewardSource | None:
        return self.reward if self.reward.placement == "group" else None

    @property
    def reward_url(self) -> str | None:
        return self.reward.url if self.reward.placement == "http" else None

    @property
    def answer_seconds(self) -> float:
        return self.reward.timeout_seconds if self.reward.placement in ("group", "http") else 0.0
