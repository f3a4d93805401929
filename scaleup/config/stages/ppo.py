"""This module holds the config of PPO as a stage: the algorithm of `stage: rl`, with the names of TRL's PPO trainer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field

from scaleup.config.algorithms import PolicyGradient, PPOAlgorithm, RolloutSettings
from scaleup.config.fields import Fraction, NotNegative, Positive
from scaleup.config.reward_source import RewardSource, WeightedReward
from scaleup.config.schema import Count, Int, Section
from scaleup.config.stages.rl import FREE_OF_A_SOURCE, FREE_OF_THE_GENERATOR, PolicyConfig


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
    def algorithm(self) -> PPOAlgorithm:
        """Returns what of it is the algorithm's."""
        return PPOAlgorithm(
            type="ppo",
            beta=self.kl_coef,
            kl_controller=self.kl_controller,
            kl_target=self.kl_target,
            kl_horizon=self.kl_horizon,
            kl_estimator=self.kl_estimator,
            gamma=self.gamma,
            lam=self.lam,
            epsilon=self.cliprange,
            cliprange_value=self.cliprange_value,
            vf_coef=self.vf_coef,
            entropy_coef=self.entropy_coef,
            whiten_advantages=self.whiten_advantages,
            whiten_rewards=self.whiten_rewards,
            reward_clip=self.reward_clip,
            missing_eos_penalty=self.missing_eos_penalty,
            value_model=self.value_model,
        )

    @property
    def rollouts(self) -> RolloutSettings:
        """Returns what of it is the rollouts'."""
        return RolloutSettings(
            num_rollouts=self.num_rollouts,
            batch_size=self.rollout_batch_size,
            num_passes=self.num_ppo_epochs,
            num_mini_batches=self.num_mini_batches,
            max_new_tokens=self.max_new_tokens,
            response_length_min=self.response_length_min,
            temperature=self.temperature,
            target_kl=self.target_kl,
            self_checks=self.self_checks,
            num_samples=self.num_samples,
        )


class PPOConfig(PolicyConfig):
    """Trains a policy by reinforcement learning from a reward: `model` and `parallel` are the policy's, `reward` may be
    a group of its own. Rows give prompts; those of data.test are held out, and answered before and after."""

    stand_ins: ClassVar[dict[str, Any]] = {"ppo": {"num_rollouts": 1}, "num_rollouts": 1, "reward": {}}
    free_on_resume: ClassVar[frozenset[str]] = frozenset(
        {"ppo.self_checks", *(f"reward.{key}" for key in FREE_OF_A_SOURCE), *FREE_OF_THE_GENERATOR}
    )
    metric_names: ClassVar[Literal["grpo", "ppo"]] = "ppo"
    gives_messages: ClassVar[bool] = False
    keys: ClassVar[dict[str, str]] = {
        "rollouts.num_rollouts": "ppo.num_rollouts",
        "rollouts.batch_size": "ppo.rollout_batch_size",
        "rollouts.num_passes": "ppo.num_ppo_epochs",
        "rollouts.num_mini_batches": "ppo.num_mini_batches",
        "rollouts.num_samples": "ppo.num_samples",
        "rollouts.response_length_min": "ppo.response_length_min",
        "rollouts.max_new_tokens": "ppo.max_new_tokens",
        "rollouts.self_checks": "ppo.self_checks",
        "algorithm.value_model": "ppo.value_model",
    }

    stage: Literal["ppo"]
    ppo: PPOSettings
    reward: RewardSource

    @property
    def policy_gradient(self) -> PolicyGradient:
        return self.ppo.algorithm

    @property
    def rollout_settings(self) -> RolloutSettings:
        return self.ppo.rollouts

    @property
    def has_reference(self) -> bool:
        return True  # objective/kl is measured also where it counts for nothing

    @property
    def reward_sources(self) -> list[WeightedReward]:
        return [WeightedReward("reward", "reward", 1.0, self.reward)]

    def with_reward_sources(self, sources: Sequence[RewardSource]) -> Self:
        return self.model_copy(update={"reward": sources[0]})
