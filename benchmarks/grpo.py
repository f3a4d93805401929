"""GRPO and RLOO on a small task: scaleup against TRL's GRPOTrainer and RLOOTrainer, rollout by rollout in turns.

    .venv/bin/python benchmarks/grpo.py [--seeds 0 1 2] [--rollouts 20]

The task is `ppo_task`: the same random policy, prompts, reward model, numbers of responses and passes, response length,
learning rate and weight of the KL divergence. How the systems take turns, and what is counted, stands at the head of
`ppo.py`. A rollout is one mini-batch of one micro-batch. Neither side uses vLLM."""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ppo import ADAM_EPSILON, LEARNING_RATE, NUM_PROMPTS, PASSES, ROLLOUT, Turns, compare, tell, train_in_turns

SYSTEMS = {
    "trl-grpo": "TRL, GRPO",
    "grpo": "scaleup, GRPO",
    "trl-rloo": "TRL, RLOO",
    "rloo": "scaleup, RLOO",
}
PEERS = {"trl-grpo": "trl-grpo", "grpo": "trl-grpo", "trl-rloo": "trl-rloo", "rloo": "trl-rloo"}
EACH = 8
BETA = 0.02
KEYS = {"grpo": {"loss_type": "dapo", "use_bias_correction_kl": False}, "rloo": {}}


def play_ours(turns: Turns, kind: str, seed: int, rollouts: int, rewards: Any, folder: Path) -> None:
    import ppo_task as task

    from scaleup.rl import GRPOAlgorithm, OptimizationConfig, RLOOAlgorithm, RLTrainer, RolloutSettings, Sample

    def reward(samples: Sequence[Sample]) -> list[float]:
        turns.responses += [sample.response for sample in samples]
        scores: list[float] = rewards.score([sample.response for sample in samples])
        turns.scores += scores
        return scores

    settings = (
        GRPOAlgorithm(type="grpo", num_generations=EACH, beta=BETA, use_bias_correction_kl=False)
        if kind == "grpo"
        else RLOOAlgorithm(type="rloo", num_generations=EACH, beta=BETA)
    )
    trainer = RLTrainer(
        task.policy(seed),
        task.tokenizer(),
        task.prompts(NUM_PROMPTS, seed=1),
        reward,
        settings,
        RolloutSettings(
            num_rollouts=rollouts + 1, batch_size=ROLLOUT, num_passes=PASSES, max_new_tokens=task.MAX_NEW_TOKENS
        ),
        train=OptimizationConfig(
            learning_rate=LEARNING_RATE,
            lr_scheduler_type="constant",
            adam_epsilon=ADAM_EPSILON,
            max_grad_norm=1.0,
            per_device_train_batch_size=ROLLOUT,
            per_device_eval_batch_size=ROLLOUT,
            seed=seed,
        ),
        output_dir=folder,
    )
    train_in_turns(trainer, turns)


def play_theirs(turns: Turns, kind: str, seed: int, rollouts: int, rewards: Any, folder: Path) -> None:
    import ppo_task as task
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

    tokenizer = task.tokenizer()

    def reward(completions: Sequence[str], **_: Any) -> list[float]:
        turns.responses += completions
        scores: list[float] = rewards.score(completions)
        turns.scores += scores
        return scores

    class InTurns(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step % PASSES == 0:
                turns.next()

        def on_train_end(self, *args: Any, **kwargs: Any) -> None:
            turns.next()

    config, trainer = (GRPOConfig, GRPOTrainer) if kind == "grpo" else (RLOOConfig, RLOOTrainer)
    settings = config(
        str(folder),
        max_steps=rollouts * PASSES,
        per_device_train_batch_size=ROLLOUT,
        num_generations=EACH,
        num_iterations=PASSES,
        beta=BETA,
        max_completion_length=task.MAX_NEW_TOKENS,
        temperature=1.0,
        learning_rate=LEARNING_RATE,
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
    rows = Dataset.from_list([{"prompt": text} for text in task.prompts(NUM_PROMPTS, seed=1)])
    task.policy(seed).save_pretrained(folder / "start")  # TRL loads its reference from where the policy is
    policy = AutoModelForCausalLM.from_pretrained(folder / "start", dtype="float32")
    trainer(
        policy, reward, args=settings, train_dataset=rows, processing_class=tokenizer, callbacks=[InTurns()]
    ).train()


def play(system: str, seed: int, rollouts: int, folder: Path) -> None:
    """A system's process. What others print goes to stderr; answers alone to stdout."""
    answers, sys.stdout = sys.stdout, sys.stderr
    import ppo_task as task
    import torch

    torch.set_num_threads(1)
    rewards = task.RewardModel(0).load(folder / "reward")
    run = play_theirs if system.startswith("trl-") else play_ours
    run(Turns(answers), system.removeprefix("trl-"), seed, rollouts, rewards, folder / f"{system}-{seed}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rollouts", type=int, default=20)
    parser.add_argument("--play", choices=list(SYSTEMS), help="one system's process: for this script")
    parser.add_argument("--folder", type=Path, help="likewise")
    asked = parser.parse_args()
    if asked.play:
        play(asked.play, asked.seeds[0], asked.rollouts, asked.folder)
        return
    import ppo_task as task

    pythons = dict.fromkeys(SYSTEMS, sys.executable)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        rewards = task.RewardModel(0)
        print(f"The reward model orders {rewards.learn():.0%} of fresh pairs as the rule does.\n", flush=True)
        rewards.save(folder / "reward")
        results = {seed: compare(__file__, pythons, seed, asked.rollouts, folder) for seed in asked.seeds}
    tell(results, asked.rollouts, SYSTEMS, PEERS)


if __name__ == "__main__":
    main()
