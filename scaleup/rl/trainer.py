"""A model, a tokenizer, prompts and rewards go in; a policy trained by reinforcement learning comes out, without a
config file or a launcher.

    settings = GRPOAlgorithm(type="grpo", num_generations=8)
    rollouts = RolloutSettings(num_rollouts=100, batch_size=64)
    trainer = GRPOTrainer(model, tokenizer, prompts, reward, settings, rollouts, output_dir="out")
    trainer.train()
    trainer.save("out/model")

In several processes (torchrun, accelerate launch) they train one policy, by DDP."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

import torch
from transformers import PreTrainedTokenizerBase

from scaleup.artifacts.run_folder import RunFolder
from scaleup.config.algorithms import GRPOAlgorithm, PolicyGradient, PPOAlgorithm, RLOOAlgorithm, RolloutSettings
from scaleup.config.data import DataConfig
from scaleup.config.fields import Section
from scaleup.config.schema import OptimizationConfig, PolicyTrainConfig
from scaleup.config.stages.ppo import PPOSettings
from scaleup.data.prompts import Prompt, PromptOrder, prompts_of
from scaleup.data.tokenization import Encoder
from scaleup.distributed.engines import base_optimizer
from scaleup.distributed.runtime import Runtime, seed_everything
from scaleup.errors import Problem, ScaleupError
from scaleup.models.adapters import is_adapted, save_settings_of_base
from scaleup.models.generation import save_tokenizer
from scaleup.models.rollout import sampling_of
from scaleup.plan.types import GroupPlan
from scaleup.records.chats import Chat
from scaleup.rl.algorithms import algorithm_of
from scaleup.rl.generators import TransformersGenerator
from scaleup.rl.loop import run_rl
from scaleup.rl.policy import policy_of
from scaleup.rl.rewards.interface import Rewards, RewardSet
from scaleup.rl.rewards.placements import ColocatedRewards, Score
from scaleup.rl.run import RL, RLState
from scaleup.train.optim import build_optimizer, build_schedule

Source = Rewards | Score
"""Is where scores come from: a function from samples to scores, or a placement of `scaleup.rl.rewards`."""


A = TypeVar("A", bound=PolicyGradient)


class RLTrainer(Generic[A]):
    """Trains a policy by any algorithm.

    `model`: a causal or encoder-decoder model of Transformers, or one with an adapter of PEFT, trained in place.
    `prompts` and `held_out`: texts, or chats for a tokenizer with a template. `rewards`: a source of scores, or several
    by name, with their `weights` (1 by default). `max_prompt_length`: in tokens. `output_dir` gets metrics, samples and
    checkpoints, from which `train` goes on."""

    names: Literal["grpo", "ppo"] = "grpo"
    keeps_reference = False
    """Tells whether the KL divergence is measured also where it counts for nothing."""

    def __init__(
        self,
        model: Any,
        tokenizer: PreTrainedTokenizerBase,
        prompts: Sequence[Any],
        rewards: Source | Mapping[str, Source],
        algorithm: A,
        rollouts: RolloutSettings,
        *,
        train: OptimizationConfig | None = None,
        weights: Mapping[str, float] | None = None,
        held_out: Sequence[Any] = (),
        max_prompt_length: int = 512,
        output_dir: str | Path = "rl",
    ) -> None:
        learning = PolicyTrainConfig(**train.model_dump()) if train else PolicyTrainConfig()
        run = RunFolder(Path(output_dir).absolute())
        run.path.mkdir(parents=True, exist_ok=True)
        group = _group()
        if problems := [
            *algorithm.problems(rollouts, group.num_processes),
            *_needs_a_config(algorithm, learning, bool(held_out)),
        ]:
            raise ScaleupError(problems)
        self.runtime = Runtime.start(group, timeout_seconds=1800, run_folder=run.path)
        self._base = model.to(self.runtime.device)
        has_reference = self.keeps_reference or algorithm.has_reference
        policy = policy_of(self._base, algorithm, rollouts.temperature, has_reference, adapter_is_new=True)
        wrapped, optimizer = self.runtime.prepare(policy, build_optimizer(policy, learning))
        task = "seq2seq_lm" if policy.is_seq2seq else "causal_lm"
        encoder = Encoder(tokenizer, task, DataConfig(max_length=max_prompt_length))
        length = rollouts.max_new_tokens, rollouts.temperature, rollouts.response_length_min
        settings: dict[str, Section] = {"algorithm": algorithm, "rollouts": rollouts, "train": learning}
        self._job = RL(
            name=self.names,
            algorithm=algorithm_of(algorithm),
            rollouts=rollouts,
            train=learning,
            hyperparameters={name: section.model_dump(mode="json") for name, section in settings.items()},
            runtime=self.runtime,
            run=run,
            model=wrapped,
            optimizer=optimizer,
            schedule=build_schedule(base_optimizer(optimizer), learning, rollouts.num_optimizer_steps),
            prompts=PromptOrder([_prompts(encoder, prompts)], [1.0], learning.seed, shuffle=True),
            held_out=_prompts(encoder, held_out),
            rewards=_rewards(self.runtime, rewards, weights or {}),
            generator=TransformersGenerator(self.runtime, wrapped, learning.per_device_eval_batch_size),
            sampling=sampling_of(model, tokenizer, *length),
            tokenizer=tokenizer,
            names=self.names,
        )

    def train(self) -> RLState:
        """Train to the last rollout, from the newest checkpoint in `output_dir`. Returns where the run stands."""
        seed_everything(self._job.train.seed)
        return run_rl(self._job)

    def save(self, folder: str | Path) -> None:
        """Write the policy alone (of an adapted model, the adapter), as Transformers and PEFT load it."""
        if self.runtime.is_main:
            is_adapter = is_adapted(self._base)
            size = {"max_shard_size": self._job.train.max_shard_size}
            self._base.save_pretrained(str(folder), **({"save_embedding_layers": False} if is_adapter else size))
            if is_adapter:
                save_settings_of_base(self._base, Path(folder))
            save_tokenizer(self._job.tokenizer, Path(folder))
        self.runtime.barrier()


class GRPOTrainer(RLTrainer[GRPOAlgorithm]):
    """Trains a policy by GRPO, and what its settings make of it: DAPO, Dr. GRPO, GSPO."""


class RLOOTrainer(RLTrainer[RLOOAlgorithm]):
    """Trains a policy by REINFORCE leave-one-out."""


class PPOTrainer(RLTrainer[PPOAlgorithm]):
    """Trains a policy by PPO, whose settings have the names of TRL's PPO trainer, as its metrics have."""

    names = "ppo"
    keeps_reference = True

    def __init__(
        self,
        model: Any,
        tokenizer: PreTrainedTokenizerBase,
        prompts: Sequence[Any],
        reward: Source,
        ppo: PPOSettings,
        train: OptimizationConfig | None = None,
        **options: Any,
    ) -> None:
        options = {"output_dir": "ppo", **options}
        super().__init__(model, tokenizer, prompts, reward, ppo.algorithm, ppo.rollouts, train=train, **options)


def _needs_a_config(algorithm: PolicyGradient, train: PolicyTrainConfig, has_held_out: bool) -> Iterator[Problem]:
    """Yield settings for which rows are read, or held-out prompts are needed that are not given."""
    what, remedy = "which a trainer without a config does not read", "use `scaleup run`, or leave it out"
    if algorithm.ptx_coef:
        yield Problem("algorithm.ptx_coef", f"needs rows of data.supervised, {what}", remedy)
    if train.eval_metrics:
        yield Problem("train.eval_metrics", f"needs rows of data.test, {what}", remedy)
    for key in ("early_stopping_patience", "load_best_model_at_end"):
        if getattr(train, key) and not (has_held_out and train.eval_steps):
            yield Problem(f"train.{key}", "needs evaluation during training", "give held_out and train.eval_steps")


def _rewards(runtime: Runtime, rewards: Source | Mapping[str, Source], weights: Mapping[str, float]) -> RewardSet:
    named = rewards if isinstance(rewards, Mapping) else {"reward": rewards}
    placed = {name: ColocatedRewards(runtime, each) if callable(each) else each for name, each in named.items()}
    return RewardSet(placed, [weights.get(name, 1.0) for name in placed])


def _prompts(encoder: Encoder, prompts: Sequence[Any]) -> list[Prompt]:
    return prompts_of(encoder, [Chat(prompt) if isinstance(prompt, list) else prompt for prompt in prompts])


def _group() -> GroupPlan:
    """Return the plan of a group as the environment describes it: the launcher that started this process set
    WORLD_SIZE."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    on_gpu = torch.cuda.is_available()
    several = {"distributed_type": "MULTI_GPU" if on_gpu else "MULTI_CPU", "engine": "DistributedDataParallel"}
    alone = {"distributed_type": "NO", "engine": "none"}
    return GroupPlan.model_validate(
        {
            "name": "policy",
            "num_processes": world,
            "num_nodes": 1,
            "device": "cuda" if on_gpu else "cpu",
            "backend": "nccl" if on_gpu else "gloo",
            "strategy": "ddp" if world > 1 else "single",
            "why": "started without a plan",
            "mixed_precision": "no",
            "threads_per_process": torch.get_num_threads(),
            "main_address": None,
            "main_port": None,
            **(several if world > 1 else alone),
        }
    )
