"""A small run of reinforcement learning whose responses an engine draws, or the policy itself; in this process."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from scaleup.generator.client import EngineClient
from scaleup.models.sources import materialize
from scaleup.rl import OptimizationConfig, PPOSettings, PPOTrainer, Sample
from scaleup.rl.generators import VLLMGenerator
from scaleup.rl.weights import WeightsWriter

Start = Callable[[int], Any]
"""Starts an engine of the run that listens at a port."""
PROMPTS = ["hello", "what a film", "a", "the story", "good", "bad but", "xyz", "there was"]
SECRET = "ab" * 32


def loaded(name: str) -> tuple[Any, Any]:
    """A built-in model, but with heads of 32, as vLLM's attention on CPUs has none of 16; and its tokenizer."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    folder = materialize(f"builtin:{name}", "model.path")
    torch.manual_seed(0)
    config = AutoConfig.from_pretrained(folder, num_attention_heads=2, num_key_value_heads=1, head_dim=32)
    return AutoModelForCausalLM.from_config(config), AutoTokenizer.from_pretrained(folder)


def vowels(samples: Sequence[Sample]) -> list[float]:
    return [sum(letter in "aeiou" for letter in s.response) - 0.1 * len(s.response) for s in samples]


def trained(
    folder: Path, name: str = "tiny-llama", start: Start | None = None, adapter: bool = False, ahead: bool = False
) -> tuple[dict[str, torch.Tensor], list[dict[str, Any]]]:
    """The weights and the metrics of a run of three rollouts, by the engine that `start` starts or without one."""
    model, tokenizer = loaded(name)
    if adapter:
        from peft import LoraConfig, get_peft_model

        torch.manual_seed(0)
        model = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"))
    settings = {"num_rollouts": 3, "rollout_batch_size": 8, "num_ppo_epochs": 2, "num_mini_batches": 2}
    train = {"optimizer": "sgd", "lr_scheduler_type": "constant", "per_device_train_batch_size": 4, "save_steps": 1}
    trainer = PPOTrainer(
        model,
        tokenizer,
        PROMPTS,
        vowels,
        PPOSettings(**settings, max_new_tokens=8, response_length_min=3, temperature=0.9),
        OptimizationConfig(**train, learning_rate=0.05),
        held_out=PROMPTS[:3],
        output_dir=folder,
    )
    if start is not None:
        client = EngineClient("127.0.0.1", 0, SECRET, timeout_seconds=120, reconnect_seconds=120)
        start(client.port)
        job = trainer._job
        writer = WeightsWriter(job.runtime, job.model, lambda: loaded(name)[0], folder / "weights")
        job.generator = VLLMGenerator(job.runtime, writer, client, tis_cap=2.0, draws_ahead=ahead)
    try:
        trainer.train()
    finally:
        trainer._job.generator.close()
    state = {name: part.detach().clone() for name, part in trainer._job.model.named_parameters()}
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return state, [json.loads(line) for line in lines]
