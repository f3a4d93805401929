"""Reinforcement learning under every strategy, by every algorithm: the same responses, so the same trajectory and end;
and killed and resumed = straight."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.cli import differing, folder_of, largest_weight_difference, metrics
from tests.forked_runs import SHARED, Leg, live

pytestmark = pytest.mark.slow
NUM_ROLLOUTS = 4
ALGORITHMS: dict[str, dict[str, Any]] = {
    "ppo": {"type": "ppo", "value_model": "separate"},
    "grpo": {"type": "grpo", "num_generations": 4, "beta": 0.05, "entropy_coef": 0.01},
    "dapo": {
        "type": "grpo",
        "num_generations": 4,
        "epsilon_high": 0.28,
        "dynamic_sampling": 2,
        "soft_punish_cache": 2,
        "top_entropy_quantile": 0.8,
    },
    "ptx": {"type": "ppo", "ptx_coef": 0.5, "ptx_batch_size": 4},
    "rloo": {"type": "rloo", "num_generations": 2},
    "reinforce_pp": {"type": "reinforce_pp", "num_generations": 1},
    "remax": {"type": "remax", "num_generations": 1, "loss_type": "constant"},
}
REWARDS = """
import os


def vowels(completions, **columns):
    return [sum(letter in "aeiou" for letter in text) - 0.1 * len(text) for text in completions]


def wanted(completions, letter, **columns):
    return [(text.lower() + "e").count(each) / (1 + len(text)) for text, each in zip(completions, letter)]


def last(predictions, references, prompts):
    assert os.environ.get("RANK", "0") == "0", "it is called once"
    assert references == list("abcde") and prompts[1] == "WHAT A FILM IT WAS", (references, prompts)
    return [float(ord(text[-1]) if text else 0) for text in predictions]
"""


SUPERVISED = {"path": "rows.jsonl", "prompt": "{text}", "completion": " {letter}"}


@dataclass(frozen=True)
class Trial:
    algorithm: str
    model: str
    strategy: str
    adapter: str = "full"
    quantization: str | None = None
    precision: str = "no"

    @property
    def name(self) -> str:
        return "-".join(map(str, vars(self).values()))

    @property
    def alone(self) -> Trial:
        """The trial it must equal."""
        return Trial(self.algorithm, self.model, "single", self.adapter, self.quantization)


EQUAL = [
    *(Trial("grpo", "llama", strategy) for strategy in SHARED),
    *(Trial(algorithm, "llama", "ddp") for algorithm in ALGORITHMS if algorithm != "grpo"),
    Trial("dapo", "llama", "fsdp2", "lora"),
    Trial("grpo", "t5", "zero3"),
    Trial("remax", "t5", "ddp", "lora"),
    *(Trial("ptx", model, strategy) for model, strategy in (("llama", "zero3"), ("t5", "ddp"))),
    *(Trial("grpo", "llama", strategy, "lora") for strategy in SHARED),
    *(Trial("grpo", "llama", strategy, "lora", quantization="4bit") for strategy in ("ddp", "zero3")),
    Trial("grpo", "llama", "ddp", "ia3"),
]
"""Has every strategy and every algorithm: of an algorithm the engines know nothing, nor it of them."""
LOW = [
    *(Trial("grpo", "llama", strategy, precision="bf16") for strategy in ("ddp", "zero3", "fsdp2")),
    Trial("rloo", "llama", "zero2", "lora", quantization="8bit"),
    Trial("rloo", "t5", "ddp", "lora", quantization="8bit"),
]
"""Lists trials that rounding makes another trajectory than one process's."""
TRIALS = list(dict.fromkeys([*(trial.alone for trial in EQUAL), *EQUAL, *LOW]))
KILLED = [Trial("grpo", "llama", "zero3"), Trial("dapo", "llama", "fsdp2", "lora"), Trial("remax", "t5", "ddp", "lora")]
ADAPTERS: dict[str, Any] = {
    "full": None,
    "lora": {"type": "lora", "r": 4, "lora_alpha": 16, "target_modules": "all-linear"},
    "ia3": {"type": "ia3"},
}
PROMPTS = ["hello", "what a film it was", "a", "the story of it", "good", "bad but long enough", "xyz", "there was one"]


CHOSEN = {
    "eval_steps": 1,
    "eval_metrics": ["chrf", "length", "rewards.py:last"],
    "metric_for_best_model": "length_characters",
    "greater_is_better": False,
    "load_best_model_at_end": True,
}
"""Holds what GRPO's trials are evaluated by."""


def config_of(trial: Trial) -> dict[str, Any]:
    is_chosen = trial.algorithm == "grpo"
    return {
        "stage": "rl",
        "name": trial.name,
        "model": {"path": f"builtin:tiny-{trial.model}"},
        "algorithm": ALGORITHMS[trial.algorithm],
        "rollouts": {
            "num_rollouts": NUM_ROLLOUTS,
            "batch_size": 8,
            "num_passes": 2,
            "num_mini_batches": 2,
            "max_new_tokens": 6,
            "response_length_min": 2,
        },
        "rewards": [
            {"name": "vowels", "placement": "function", "function": "rewards.py:vowels"},
            {"name": "wanted", "weight": 2.0, "placement": "function", "function": "rewards.py:wanted"},
        ],
        "data": {
            "train": "rows.jsonl",
            "test": "held.jsonl",
            "prompt": "{text}",
            "completion": " {letter}" if is_chosen else None,
            "max_length": 24,
            "supervised": [SUPERVISED] if trial.algorithm == "ptx" else None,
        },
        "adapter": ADAPTERS[trial.adapter],
        "quantization": trial.quantization,
        "mixed_precision": trial.precision,
        "train": {
            "optimizer": "sgd",
            "learning_rate": 0.1,
            "per_device_train_batch_size": 2,
            "per_device_eval_batch_size": 4,
            "save_steps": 2,
            **(CHOSEN if is_chosen else {}),
        },
        "parallel": {
            "strategy": trial.strategy,
            "num_processes": 1 if trial.strategy == "single" else 2,
            "device": "cpu",
        },
    }


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where all runs are."""
    place = tmp_path_factory.mktemp("rl")
    (place / "rewards.py").write_text(REWARDS)
    for name, texts in (("rows", PROMPTS), ("held", [text.upper() for text in PROMPTS[:5]])):
        rows = [{"text": text, "letter": "abcdefgh"[number]} for number, text in enumerate(texts)]
        (place / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    lives = {trial.name: [Leg(config_of(trial))] for trial in TRIALS}
    for trial in KILLED:
        config = differing(config_of(trial), {"name": f"killed-{trial.name}"})
        lives[f"killed-{trial.name}"] = [Leg(config, kill_after=2), Leg(config)]
    live(lives, place, timeout=900)
    return place


def measured(folder: Path) -> list[dict[str, float]]:
    """What is logged, without what depends on the machine, and without counts, which rounding may change by one."""
    left_out = ("time/", "memory", "clip_ratio", "approxkl")
    return [{name: value for name, value in line.items() if not name.startswith(left_out)} for line in metrics(folder)]


def assert_equal(one: Path, other: Path, tolerance: float) -> None:
    left, right = measured(one), measured(other)
    assert [line["step"] for line in left] == [line["step"] for line in right]
    assert len([line for line in left if "reward" in line]) == NUM_ROLLOUTS
    for ours, theirs in zip(left, right, strict=True):
        assert ours == pytest.approx(theirs, rel=tolerance, abs=tolerance)
    assert largest_weight_difference(one, other) <= tolerance


@pytest.mark.timeout(1200)  # the first waits for all
@pytest.mark.parametrize("trial", EQUAL, ids=lambda trial: trial.name)
def test_every_strategy_is_one_process(place: Path, trial: Trial) -> None:
    assert_equal(*(folder_of(config_of(each), place) for each in (trial, trial.alone)), 2e-5)


@pytest.mark.parametrize("trial", KILLED, ids=lambda trial: trial.name)
def test_killed_and_resumed_is_straight(place: Path, trial: Trial) -> None:
    config = config_of(trial)
    assert_equal(folder_of(differing(config, {"name": f"killed-{trial.name}"}), place), folder_of(config, place), 0)


@pytest.mark.parametrize("strategy", ["single", *SHARED])
def test_the_best_policy_is_the_result(place: Path, strategy: str) -> None:
    """By a figure of its responses to held-out prompts. Those before it has learned anything do not count."""
    folder = folder_of(config_of(Trial("grpo", "llama", strategy)), place)
    lines = [line for line in metrics(folder) if "eval/scores" in line]
    assert [line["step"] for line in lines] == list(range(NUM_ROLLOUTS + 1))
    assert all(line.keys() >= {"eval/chrf", "eval/length_words", "eval/last"} for line in lines)
    best = min(lines[1:], key=lambda line: line["eval/length_characters"])
    told = json.loads((folder / "manifest.json").read_text())["metrics"]
    assert told["best_step"] == best["step"] and told["held_out_length_characters"] == best["eval/length_characters"]
    assert told["held_out_after"] == best["eval/scores"] and told["held_out_chrf"] == best["eval/chrf"]


@pytest.mark.parametrize("trial", LOW, ids=lambda trial: trial.name)
def test_in_low_precision_it_runs_to_its_end_and_the_first_ratio_is_one(place: Path, trial: Trial) -> None:
    """Its self-checks have looked at the ratio, and at policy and reference."""
    lines = [line for line in metrics(folder_of(config_of(trial), place)) if "reward" in line]
    assert len(lines) == NUM_ROLLOUTS and max(line["grad_norm"] for line in lines) > 1e-3


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_rewards_tell_responses_apart_and_the_policy_moves(place: Path, algorithm: str) -> None:
    """Else everything would be equal to everything."""
    folder = folder_of(config_of(Trial(algorithm, "llama", "single")), place)
    lines = [line for line in metrics(folder) if "reward" in line]
    for name, least in (("reward_std", 1e-2), ("rewards/vowels/std", 1e-2), ("grad_norm", 1e-3)):
        assert len([line for line in lines if line[name] > least]) >= NUM_ROLLOUTS - 1, name
    assert any(line["rewards/wanted/std"] > 1e-2 for line in lines)
