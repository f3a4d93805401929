"""PPO as a library: a policy learns, from a Python function, to write vowels.

    python examples/ppo.py                  (some seconds on a CPU: a random model of 100,000 parameters)
    python examples/ppo.py runs/first/model (any causal or encoder-decoder model of Transformers)

In several processes they train one policy, by DDP: `torchrun --nproc-per-node 2 examples/ppo.py`."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

from scaleup.models.sources import materialize
from scaleup.rl import OptimizationConfig, PPOSettings, PPOTrainer, Sample

PROMPTS = ["hello", "what a film", "a", "the story", "good", "bad but", "xyz", "there was"]


def vowels(samples: Sequence[Sample]) -> list[float]:
    """The reward of each response: how many of its letters are vowels."""
    return [sum(letter in "aeiou" for letter in sample.response) for sample in samples]


def main(path: str = "builtin:tiny-llama", output_dir: str = "runs/example-ppo", num_rollouts: int = 20) -> None:
    folder = materialize(path)
    is_seq2seq = AutoConfig.from_pretrained(folder).is_encoder_decoder
    model = (AutoModelForSeq2SeqLM if is_seq2seq else AutoModelForCausalLM).from_pretrained(folder)
    trainer = PPOTrainer(
        model,
        AutoTokenizer.from_pretrained(folder),
        PROMPTS,
        vowels,
        PPOSettings(num_rollouts=num_rollouts, rollout_batch_size=32, max_new_tokens=12),
        OptimizationConfig(learning_rate=1.0e-3, per_device_train_batch_size=32),
        output_dir=output_dir,
    )
    trainer.train()
    trainer.save(f"{output_dir}/model")


if __name__ == "__main__":
    main(*sys.argv[1:])
