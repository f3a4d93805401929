"""PPO under every strategy: with the same prompts and seeds, the same trajectory, final policy and values."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from scaleup.plan.compat import table
from scaleup.plan.stages import planner_named
from tests.cli import largest_weight_difference, metrics
from tests.forked_runs import SHARED, train

pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Trial:
    model: str
    strategy: str
    adapter: str = "full"
    value_model: str = "head"
    quantization: str | None = None
    precision: str = "no"
    gradient_checkpointing: bool = False

    @property
    def name(self) -> str:
        parts = (self.model, self.strategy, self.adapter, self.value_model, self.quantization, self.precision)
        return "-".join(map(str, parts)) + "-checkpointing" * self.gradient_checkpointing

    @property
    def alone(self) -> Trial:
        """The trial it must equal."""
        return Trial(self.model, "single", self.adapter, self.value_model, self.quantization, self.precision)


EQUAL = [
    *(Trial("llama", strategy) for strategy in SHARED),
    *(Trial("t5", strategy) for strategy in ("ddp", "zero2", "zero3", "fsdp2")),
    *(Trial("llama", strategy, "lora") for strategy in SHARED),
    *(Trial("t5", strategy, "lora", "separate") for strategy in ("zero2", "fsdp2")),
    Trial("llama", "zero3", gradient_checkpointing=True),
    Trial("t5", "ddp", gradient_checkpointing=True),
    *(Trial("llama", strategy, "lora", quantization="4bit") for strategy in ("ddp", "zero3")),
    Trial("llama", "ddp", "ia3"),
]
LOW = [
    *(Trial("llama", strategy, precision="bf16") for strategy in ("ddp", "zero3", "fsdp2")),
    Trial("llama", "zero2", "lora", quantization="8bit"),
    Trial("t5", "ddp", "lora", quantization="8bit"),
]
"""Rounding depends on what shares a batch, so trajectories part after a while; LLM.int8 rounds activations."""
TRIALS = list(dict.fromkeys([*(trial.alone for trial in EQUAL), *EQUAL, *LOW]))


WORDS = ["hello", "what a film", "a", "the story of it", "good", "bad but", "xyz", "there was"]
REWARD = """
def vowels(completions, **columns):
    return [sum(letter in "aeiou" for letter in text) - 0.1 * len(text) for text in completions]
"""
ADAPTERS: dict[str, Any] = {
    "full": None,
    "lora": {"type": "lora", "r": 4, "lora_alpha": 16, "target_modules": "all-linear"},
    "ia3": {"type": "ia3"},
}


def config_of(trial: Trial) -> dict[str, Any]:
    """Batches of 4 rows on one process, of 2 on each of two: so that the micro-batches differ too."""
    return {
        "stage": "ppo",
        "name": trial.name,
        "model": {"path": f"builtin:tiny-{trial.model}"},
        "data": {
            "train": "rows.jsonl",
            "test": "test.jsonl",
            "prompt": "{text}",
            "max_length": 32,
        },
        "ppo": {
            "num_rollouts": 3,
            "rollout_batch_size": 8,
            "num_ppo_epochs": 2,
            "num_mini_batches": 2,
            "max_new_tokens": 8,
            "response_length_min": 4,
            "kl_controller": "adaptive",
            "kl_horizon": 100.0,
            "entropy_coef": 0.01,
            "value_model": trial.value_model,
        },
        "reward": {"placement": "function", "function": "reward.py:vowels"},
        "adapter": ADAPTERS[trial.adapter],
        "quantization": trial.quantization,
        "train": {
            "learning_rate": 0.05,
            "optimizer": "sgd",
            "lr_scheduler_type": "constant",
            "per_device_train_batch_size": 2,
            "per_device_eval_batch_size": 3,
        },
        "gradient_checkpointing": trial.gradient_checkpointing,
        "mixed_precision": trial.precision,
        "parallel": {
            "strategy": trial.strategy,
            "num_processes": 1 if trial.strategy == "single" else 2,
            "device": "cpu",
        },
    }


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("ppo")
    for name, texts in (("rows", WORDS), ("test", [f"so {word}" for word in WORDS[:3]])):
        (place / f"{name}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    (place / "reward.py").write_text(REWARD)
    return train({trial.name: config_of(trial) for trial in TRIALS}, place, timeout=600)


def test_every_cell_that_is_ok_is_tried() -> None:
    """Those of stage ppo in docs/compatibility.md."""
    cells = table(planner_named("ppo").tested, "ppo")
    ok = {(c.adapter, c.strategy, c.quantization, c.precision) for c, verdict in cells if verdict.status == "ok"}
    assert ok == {(trial.adapter, trial.strategy, trial.quantization, trial.precision) for trial in TRIALS}


def measured(folder: Path) -> list[dict[str, float]]:
    """Of each rollout, without what depends on the machine, and without counts, which rounding may change by one."""
    left_out = ("time/", "memory", "ppo/policy/clipfrac", "ppo/val/clipfrac")
    return [{name: value for name, value in line.items() if not name.startswith(left_out)} for line in metrics(folder)]


@pytest.mark.timeout(900)  # the first waits for all
@pytest.mark.parametrize("trial", EQUAL, ids=lambda trial: trial.name)
def test_every_strategy_is_one_process(runs: dict[str, Path], trial: Trial) -> None:
    one, other = runs[trial.name], runs[trial.alone.name]
    ours, theirs = measured(one), measured(other)
    assert len(ours) == len(theirs) == 5  # three rollouts, held-out prompts before and after
    for left, right in zip(ours, theirs, strict=True):
        assert left == pytest.approx(right, abs=2e-5, rel=2e-5)
    for pattern in ("model/*model.safetensors", "values/*.safetensors"):
        assert largest_weight_difference(one, other, pattern) <= 1e-5


@pytest.mark.parametrize("trial", LOW, ids=lambda trial: trial.name)
def test_low_precision_trains(runs: dict[str, Path], trial: Trial) -> None:
    """The self-checks pass: policy and reference start alike, and the first ratio is one."""
    first = next(line for line in metrics(runs[trial.name]) if "objective/kl" in line)
    assert abs(first["objective/kl"]) < 0.1
    assert abs(first["ppo/val/ratio"] - 1) < 0.1


def test_the_policy_moves(runs: dict[str, Path]) -> None:
    """Else everything would be equal to everything."""
    for trial in {trial.alone for trial in EQUAL}:
        last = [line for line in metrics(runs[trial.name]) if "objective/kl" in line][-1]
        assert abs(last["objective/kl"]) > 1e-6
        assert last["objective/kl_coef"] != 0.05
