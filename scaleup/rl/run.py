"""This module holds what a run of reinforcement learning consists of, and where it stands."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from torch.optim.lr_scheduler import LRScheduler

from scaleup.artifacts.run_folder import RunFolder
from scaleup.artifacts.timeline import UNNOTED, Timeline
from scaleup.artifacts.train_state import TrainState
from scaleup.config.algorithms import RolloutSettings
from scaleup.config.schema import PolicyTrainConfig
from scaleup.data.prompts import Prompt, PromptOrder
from scaleup.distributed.runtime import Runtime
from scaleup.models.rollout import Sampling
from scaleup.rl.algorithms import Algorithm
from scaleup.rl.generators import Generator
from scaleup.rl.rewards.interface import RewardSet
from scaleup.rl.supervised import SupervisedTerm
from scaleup.train.checkpoint import Checkpointer


@dataclass
class RLState(TrainState):
    """Tells where a run stands; `step` counts rollouts."""

    kl_coef: float | None = None
    num_updates: int = 0
    """Counts the optimizer steps."""
    num_refilled: int = 0
    """Counts the prompts that were asked beside those of the rollouts (dynamic sampling)."""
    evaluated: int | None = None
    """Is the number of rollouts at the last evaluation; -1 where there was none yet, None where nobody knows."""
    ahead: dict[str, Any] | None = None
    """Holds the responses of the next rollout where they were drawn ahead."""


class RLCheckpointer(Checkpointer[RLState]):
    state_class = RLState
    generator: Generator

    def save(self, state: RLState) -> None:
        """Write a checkpoint as any other, with what is drawn ahead."""
        state.ahead = self.generator.kept()
        super().save(state)


@dataclass
class RL:
    """Holds a run of reinforcement learning, prepared to start."""

    name: str
    algorithm: Algorithm
    rollouts: RolloutSettings
    train: PolicyTrainConfig
    hyperparameters: Mapping[str, Any]
    """Holds what trackers show of the run, beside its name."""
    runtime: Runtime
    run: RunFolder
    model: Any
    """Is a Policy under the run's strategy."""
    optimizer: Any
    schedule: LRScheduler
    prompts: PromptOrder
    held_out: Sequence[Prompt]
    """Are the prompts that are answered at each evaluation."""
    rewards: RewardSet
    generator: Generator
    sampling: Sampling
    tokenizer: Any
    quantization: str | None = None
    supervised: SupervisedTerm | None = None
    names: Literal["grpo", "ppo"] = "grpo"
    """Says which of TRL's trainers the metrics are named after."""
    figures: Callable[[Sequence[str]], dict[str, float]] | None = None
    """Returns figures of the responses to the held-out prompts, the same on every rank; every rank calls it."""
    timeline: Timeline = UNNOTED
    compared: dict[str, float] = field(default_factory=dict)
    """Holds what the last comparison of generator and policy told."""
