"""A model, a tokenizer, prompts and a reward go in; a policy trained by PPO comes out, without a config file or a
launcher.

    trainer = PPOTrainer(model, tokenizer, prompts, reward, PPOSettings(num_rollouts=100), output_dir="out")
    trainer.train()
    trainer.save("out/model")

In several processes (torchrun, accelerate launch) they train one policy, by DDP."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from scaleup.artifacts.run_folder import RunFolder
from scaleup.config.schema import DataConfig, OptimizationConfig
from scaleup.config.stages.ppo import PPOSettings
from scaleup.data.prompts import Prompt, PromptOrder, prompts_of
from scaleup.data.tokenization import Encoder
from scaleup.distributed.engines import base_optimizer
from scaleup.distributed.runtime import Runtime, seed_everything
from scaleup.models.adapters import is_adapted, save_settings_of_base
from scaleup.models.generation import save_tokenizer
from scaleup.models.rollout import sampling_of
from scaleup.plan.types import GroupPlan
from scaleup.records.chats import Chat
from scaleup.rl.loop import PPO, PPOState, run_ppo
from scaleup.rl.policy import Policy
from scaleup.rl.rewards.interface import Rewards
from scaleup.rl.rewards.placements import ColocatedRewards, Score
from scaleup.train.optim import build_optimizer, build_schedule


class PPOTrainer:
    """Trains a policy by PPO.

    `model`: a causal or encoder-decoder model of Transformers, or one with an adapter of PEFT, trained in place.
    `prompts` and `held_out`: texts, or chats for a tokenizer with a template. `reward`: a function from samples to
    scores, or a placement of `scaleup.rl`. `max_prompt_length`: in tokens. `output_dir` gets metrics, samples and
    checkpoints, from which `train` goes on."""

    def __init__(
        self,
        model: Any,
        tokenizer: PreTrainedTokenizerBase,
        prompts: Sequence[Any],
        reward: Rewards | Score,
        ppo: PPOSettings,
        train: OptimizationConfig | None = None,
        held_out: Sequence[Any] = (),
        max_prompt_length: int = 512,
        output_dir: str | Path = "ppo",
    ) -> None:
        train = train or OptimizationConfig()
        run = RunFolder(Path(output_dir).absolute())
        run.path.mkdir(parents=True, exist_ok=True)
        self.runtime = Runtime.start(_group(), timeout_seconds=1800, run_folder=run.path)
        self._base = model.to(self.runtime.device)
        policy = Policy(self._base, ppo.temperature, separate_value=ppo.value_model == "separate")
        wrapped, optimizer = self.runtime.prepare(policy, build_optimizer(policy, train))
        task = "seq2seq_lm" if policy.is_seq2seq else "causal_lm"
        encoder = Encoder(tokenizer, task, DataConfig(max_length=max_prompt_length))
        self._job = PPO(
            name="ppo",
            ppo=ppo,
            train=train,
            hyperparameters={"ppo": ppo.model_dump(mode="json"), "train": train.model_dump(mode="json")},
            runtime=self.runtime,
            run=run,
            model=wrapped,
            optimizer=optimizer,
            schedule=build_schedule(base_optimizer(optimizer), train, ppo.num_optimizer_steps),
            prompts=PromptOrder([_prompts(encoder, prompts)], [1.0], train.seed, shuffle=True),
            held_out=_prompts(encoder, held_out),
            rewards=ColocatedRewards(self.runtime, reward) if callable(reward) else reward,
            sampling=sampling_of(model, tokenizer, ppo.max_new_tokens, ppo.temperature, ppo.response_length_min),
            tokenizer=tokenizer,
        )

    def train(self) -> PPOState:
        """Train to the last rollout, from the newest checkpoint in `output_dir`. Returns where the run stands."""
        seed_everything(self._job.train.seed)
        return run_ppo(self._job)

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
