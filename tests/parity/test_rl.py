"""GRPO and RLOO are TRL's, by a whole trajectory of its trainers on responses that both draw from the policy as it is:
rewards, ratios, losses, gradients and weights."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

from scaleup.config.algorithms import GRPOAlgorithm, PolicyGradient, RLOOAlgorithm, RolloutSettings
from scaleup.config.schema import OptimizationConfig
from scaleup.models.rollout import respond, response_seeds, sampling_of
from scaleup.rl.policy import Policy
from scaleup.rl.rewards.interface import Sample
from scaleup.rl.trainer import RLTrainer
from tests.parity.test_dpo import QUIET
from tests.unit.data import tiny

ROLLOUTS, EACH, BATCH, MOST = 6, 4, 16, 8
SEED = OptimizationConfig().seed
PROMPTS = ["hello", "what a film", "a", "the story", "good", "bad but", "xyz", "there was"]
OPTIMIZATION = {"learning_rate": 0.05, "lr_scheduler_type": "constant", "max_grad_norm": 1.0}
CASES: dict[str, tuple[type[PolicyGradient], dict[str, Any], dict[str, Any]]] = {
    "grpo": (GRPOAlgorithm, {}, {"loss_type": "dapo"}),
    "grpo, a mean over responses, KL in the loss": (
        GRPOAlgorithm,
        {"loss_type": "sequence", "beta": 0.1},
        {"loss_type": "grpo", "beta": 0.1},
    ),
    "grpo, KL without the ratio": (
        GRPOAlgorithm,
        {"loss_type": "sequence", "beta": 0.1, "use_bias_correction_kl": False, "epsilon": 0.01},
        {"loss_type": "grpo", "beta": 0.1, "use_bias_correction_kl": False, "epsilon": 0.01},
    ),
    "Dr. GRPO": (
        GRPOAlgorithm,
        {"loss_type": "constant", "scale_rewards": "none"},
        {"loss_type": "dr_grpo", "scale_rewards": "none"},
    ),
    "GSPO": (
        GRPOAlgorithm,
        {"loss_type": "sequence", "importance_sampling_level": "sequence", "epsilon": 0.003, "epsilon_high": 0.004},
        {"loss_type": "grpo", "importance_sampling_level": "sequence", "epsilon": 0.003, "epsilon_high": 0.004},
    ),
    "DAPO's clip-higher, two-sided": (
        GRPOAlgorithm,
        {"epsilon": 0.02, "epsilon_high": 0.03, "delta": 1.05, "scale_rewards": "batch"},
        {"epsilon": 0.02, "epsilon_high": 0.03, "delta": 1.05, "scale_rewards": "batch", "loss_type": "dapo"},
    ),
    "nothing of what was cut off": (
        GRPOAlgorithm,
        {"mask_truncated_completions": True},
        {"mask_truncated_completions": True, "loss_type": "dapo"},
    ),
    "two rewards, normalised": (
        GRPOAlgorithm,
        {"combine": "normalized_sum", "scale_rewards": "batch"},
        {"multi_objective_aggregation": "normalize_then_sum", "scale_rewards": "batch", "loss_type": "dapo"},
    ),
    "rloo": (RLOOAlgorithm, {"beta": 0.1}, {"beta": 0.1}),
    "rloo, normalised": (
        RLOOAlgorithm,
        {"beta": 0.0, "normalize_advantages": True, "epsilon": 0.05},
        {"beta": 0.0, "normalize_advantages": True, "epsilon": 0.05},
    ),
}
ONE_PASS: dict[str, tuple[type[PolicyGradient], dict[str, Any], dict[str, Any]]] = {
    "tokens of high entropy, and a bonus": (
        GRPOAlgorithm,
        {"top_entropy_quantile": 0.5, "entropy_coef": 0.02},
        {"top_entropy_quantile": 0.5, "entropy_coef": 0.02, "loss_type": "dapo"},
    ),
}
"""Holds what TRL takes from the policy as it is in each pass, and we as it was in the rollout."""


def num_letters(text: str) -> int:
    return sum("a" <= letter <= "z" for letter in text.lower())


def ends() -> list[int]:
    """Return what ends a response: of the tokens that are no letters as many as that some responses end early."""
    tokenizer = tiny.tokenizer("llama")
    others = [token for token in range(3, len(tokenizer)) if not num_letters(tokenizer.decode([token]))]
    return [tokenizer.eos_token_id, *others[::3]]


def vowels(completions: Sequence[str], **_: Any) -> list[float]:
    return [sum(letter in "aeiou" for letter in text) / 4 - 0.1 * num_letters(text) for text in completions]


def early(completions: Sequence[str], **_: Any) -> list[float]:
    return [sum("a" <= letter <= "m" for letter in text) - num_letters(text) / 3 for text in completions]


def ours_of(function: Any) -> Any:
    def score(samples: Sequence[Sample]) -> list[float]:
        return function([sample.response for sample in samples])

    return score


REWARDS = {"vowels": vowels, "early": early}
WEIGHTS = [1.0, 0.5]


def our_trainer(settings: PolicyGradient, model: Any, folder: Path, passes: int) -> RLTrainer:
    rollouts = RolloutSettings(num_rollouts=ROLLOUTS, batch_size=BATCH, num_passes=passes, max_new_tokens=MOST)
    return RLTrainer(
        model,
        tiny.tokenizer("llama"),
        PROMPTS,
        {name: ours_of(function) for name, function in REWARDS.items()},
        settings,
        rollouts,
        train=OptimizationConfig(**OPTIMIZATION, optimizer="sgd", per_device_train_batch_size=BATCH),
        weights=dict(zip(REWARDS, WEIGHTS, strict=True)),
        output_dir=folder,
    )


def their_trainer(kind: type, keys: dict[str, Any], model: Any, prompts: list[str], folder: Path, passes: int) -> Any:
    """TRL's trainer, which draws as we do: from its own policy, with the seeds of the rollout."""
    is_rloo = kind is RLOOAlgorithm
    config, base = (RLOOConfig, RLOOTrainer) if is_rloo else (GRPOConfig, GRPOTrainer)
    tokenizer = tiny.tokenizer("llama")
    tokenizer.padding_side = "left"

    class Drawing(base):  # type: ignore[misc, valid-type]
        drawn = 0

        def _generate_single_turn(self, prompt_ids: list[list[int]], *_: Any) -> Any:
            policy = Policy(deepcopy(self.model), 1.0, None, has_reference=False).eval()
            seeds = response_seeds(SEED, self.drawn, len(prompt_ids))
            self.drawn += 1
            responses = respond(
                policy, prompt_ids, seeds, sampling_of(model, tokenizer, MOST, 1.0), torch.device("cpu")
            )
            rows = zip(responses.tokens.tolist(), responses.lengths.tolist(), strict=True)
            tokens = [row[:length] for row, length in rows]
            return tokens if is_rloo else (tokens, None)

    settings = {key: value for key, value in QUIET.items() if key != "max_length"}
    return Drawing(
        model,
        list(REWARDS.values()),
        args=config(
            output_dir=str(folder),
            **OPTIMIZATION,
            **keys,
            **settings,
            max_steps=ROLLOUTS * passes,
            per_device_train_batch_size=BATCH,
            num_generations=EACH,
            num_iterations=passes,
            max_completion_length=MOST,
            shuffle_dataset=False,
            reward_weights=WEIGHTS,
            temperature=1.0,
        ),
        train_dataset=Dataset.from_list([{"prompt": prompt} for prompt in prompts]),
        processing_class=tokenizer,
    )


def both(name: str, passes: int, folder: Path) -> Iterator[Any]:
    kind, keys, theirs = {**CASES, **ONE_PASS}[name]
    model = tiny.model("llama")
    model.generation_config.eos_token_id = ends()
    if "top_entropy_quantile" in keys:  # of a random model all entropies are the same up to rounding
        model.lm_head.weight.data.mul_(8)
    their_model, start = deepcopy(model), deepcopy(model)
    settings = kind(type="rloo" if kind is RLOOAlgorithm else "grpo", **{"num_generations": EACH, **keys})
    ours = our_trainer(settings, model, folder / "ours", passes)
    prompts = [ours._job.prompts[place].text for place in range(ROLLOUTS * BATCH // EACH)]
    ours.train()
    their = their_trainer(kind, theirs, their_model, prompts, folder / "trl", passes)
    their.train()
    lines = [json.loads(line) for line in (folder / "ours/metrics.jsonl").read_text().splitlines()]
    logged = [line for line in their.state.log_history if "grad_norm" in line]
    yield from (lines, logged, model.state_dict(), their_model.state_dict(), start.state_dict())


@pytest.mark.parametrize(("name", "passes"), [*((name, 2) for name in CASES), *((name, 1) for name in ONE_PASS)])
def test_trajectory_is_that_of_trl(name: str, passes: int, tmp_path: Path) -> None:
    ours, theirs, weights, their_weights, start = both(name, passes, tmp_path)
    assert len(ours) == ROLLOUTS and len(theirs) == ROLLOUTS * passes
    for line, first, last in zip(ours, theirs[::passes], theirs[passes - 1 :: passes], strict=True):
        for key in ("rewards/vowels/mean", "rewards/early/mean", "reward", "completions/mean_length"):
            assert line[key] == pytest.approx(float(first[key]), rel=1e-5, abs=1e-6), key
        assert line["grad_norm"] == pytest.approx(float(last["grad_norm"]), rel=1e-4, abs=1e-5)
    for key, weight in weights.items():
        assert (weight - their_weights[key]).abs().max() <= 1e-5, key
    assert max((weight - start[key]).abs().max() for key, weight in their_weights.items()) > 1e-3
