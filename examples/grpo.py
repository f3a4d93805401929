"""GRPO as a library: a policy learns, from two Python functions, to write vowels in few letters.

    python examples/grpo.py                  (some seconds on a CPU: a random model of 100,000 parameters)
    python examples/grpo.py runs/first/model (any causal or encoder-decoder model of Transformers)

In several processes they train one policy, by DDP: `torchrun --nproc-per-node 2 examples/grpo.py`."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

from scaleup.models.sources import materialize
from scaleup.rl import GRPOAlgorithm, GRPOTrainer, OptimizationConfig, RolloutSettings, Sample

PROMPTS = ["hello", "what a film", "a", "the story", "good", "bad but", "xyz", "there was"]


def vowels(samples: Sequence[Sample]) -> list[float]:
    """How many letters of each response are vowels."""
    return [float(sum(letter in "aeiou" for letter in sample.response)) for sample in samples]


def short(samples: Sequence[Sample]) -> list[float]:
    """Minus the letters of each response."""
    return [-float(len(sample.response)) for sample in samples]


def main(path: str = "builtin:tiny-llama", output_dir: str = "runs/example-grpo", num_rollouts: int = 20) -> None:
    folder = materialize(path)
    is_seq2seq = AutoConfig.from_pretrained(folder).is_encoder_decoder
    model = (AutoModelForSeq2SeqLM if is_seq2seq else AutoModelForCausalLM).from_pretrained(folder)
    trainer = GRPOTrainer(
        model,
        AutoTokenizer.from_pretrained(folder),
        PROMPTS,
        {"vowels": vowels, "short": short},
        GRPOAlgorithm(type="grpo", num_generations=8),
        RolloutSettings(num_rollouts=num_rollouts, batch_size=64, max_new_tokens=12),
        weights={"short": 0.1},
        train=OptimizationConfig(learning_rate=3.0e-3, per_device_train_batch_size=64, per_device_eval_batch_size=64),
        output_dir=output_dir,
    )
    trainer.train()
    trainer.save(f"{output_dir}/model")


if __name__ == "__main__":
    main(*sys.argv[1:])
