"""This module holds the config of reinforcement learning, of which PPO is one algorithm."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field

from scaleup.config.adapters import AdapterConfig
from scaleup.config.algorithms import AlgorithmSettings, PolicyGradient, RolloutSettings
from scaleup.config.evaluation import EvaluationConfig
from scaleup.config.generator import FREE_OF_A_GENERATOR, GENERATOR, GeneratorConfig
from scaleup.config.metrics import OF_ANSWERS
from scaleup.config.reward_source import NamedReward, RewardSource, WeightedReward
from scaleup.config.schema import GenerationConfig, PolicyTrainConfig
from scaleup.config.stages.base import TrainingConfig

FREE_OF_A_SOURCE = (
    "placement",
    "url",
    "parallel",
    "own_nodes",
    "batch_size",
    "timeout_seconds",
    "reconnect_seconds",
    "bridge_port",
    "max_restarts",
    "retries",
    "judge.max_concurrency",
    "judge.api_key_env",
    "judge.api_key_file",
)
"""Lists the keys of a reward that may change when a run goes on: they say where scores come from, not which."""

FREE_OF_THE_GENERATOR = tuple(f"{GENERATOR}.{key}" for key in FREE_OF_A_GENERATOR)


class PolicyConfig(TrainingConfig):
    """Holds what every stage has that trains a policy on its own responses. What `algorithm` and `rollouts` say may
    stand elsewhere in the file: `keys` tells where."""

    plans_its_batch: ClassVar[bool] = True
    metric_names: ClassVar[Literal["grpo", "ppo"]] = "grpo"
    """Says which of TRL's trainers metrics are named after."""
    gives_messages: ClassVar[bool] = True
    """Tells whether reward functions get conversations as messages, as TRL's GRPO gives them, else as texts."""
    keys: ClassVar[dict[str, str]] = {}
    """Maps `algorithm.KEY` and `rollouts.KEY` -> the stage's own key of it, where that is another."""

    train: PolicyTrainConfig = Field(default_factory=PolicyTrainConfig)
    adapter: AdapterConfig | None = Field(
        None, description="Train this instead of the whole model; the reference is the model without it."
    )
    generator: GeneratorConfig = Field(default_factory=GeneratorConfig, description="What draws responses.")
    evaluation: EvaluationConfig = Field(
        default_factory=EvaluationConfig, description="What `scaleup evaluate RUN` measures."
    )
    generation: GenerationConfig | None = Field(
        None, description="How it answers then; by default greedily, with as many tokens as a rollout's responses."
    )

    @property
    def needs_references(self) -> bool:
        """Tells whether responses to held-out prompts are compared with what the rows say."""
        return any(metric not in OF_ANSWERS for metric in self.train.eval_metrics)

    @property
    def policy_gradient(self) -> PolicyGradient:
        """Returns the algorithm's settings."""
        raise NotImplementedError

    @property
    def rollout_settings(self) -> RolloutSettings:
        raise NotImplementedError

    @property
    def has_reference(self) -> bool:
        """Tells whether the policy is compared with a reference."""
        return self.policy_gradient.has_reference

    @property
    def generator_group(self) -> GeneratorConfig | None:
        return self.generator if self.generator.is_group else None

    @property
    def longest_response(self) -> int:
        return self.rollout_settings.max_new_tokens

    def key(self, name: str) -> str:
        """Returns where the config has `algorithm.KEY` or `rollouts.KEY`."""
        return self.keys.get(name, name)


class RLConfig(PolicyConfig):
    """Trains a policy by reinforcement learning: `model` and `parallel` are the policy's, each of the rewards may be a
    group of its own. Rows give prompts; those of data.test are held out, and answered before and after."""

    stand_ins: ClassVar[dict[str, Any]] = {
        "algorithm": {"type": "grpo"},
        "rollouts": {"num_rollouts": 1},
        "num_rollouts": 1,
        "type": "grpo",
        "rewards": [{"name": "reward", "placement": "function", "function": "builtin:length"}],
    }
    free_on_resume: ClassVar[frozenset[str]] = frozenset(
        {"rollouts.self_checks", *(f"rewards.*.{key}" for key in FREE_OF_A_SOURCE), *FREE_OF_THE_GENERATOR}
    )

    stage: Literal["rl"]
    algorithm: AlgorithmSettings
    rollouts: RolloutSettings
    rewards: Annotated[list[NamedReward], Field(min_length=1)] = Field(
        description="Sources of scores, added by their weights."
    )

    @property
    def policy_gradient(self) -> PolicyGradient:
        return self.algorithm

    @property
    def rollout_settings(self) -> RolloutSettings:
        return self.rollouts

    @property
    def reward_sources(self) -> list[WeightedReward]:
        named = enumerate(self.rewards)
        return [WeightedReward(f"rewards.{place}", each.name, each.weight, each) for place, each in named]

    def with_reward_sources(self, sources: Sequence[RewardSource]) -> Self:
        return self.model_copy(update={"rewards": list(sources)})
