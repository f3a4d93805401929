"""PPO under every strategy: with the same prompts and seeds, the same trajectory, final policy and values."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.distributed.test_runtime import python

SHARED = ("ddp", "zero1", "zero2", "zero3", "fsdp2")


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
    *(Trial("llama", strategy, "lora") for strategy in ("ddp", "zero3", "fsdp2")),
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


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory, repository: Path) -> dict[str, dict[str, Any]]:
    out = tmp_path_factory.mktemp("ppo") / "trials.jsonl"
    result = python("-m", "tests.distributed.ppo_cells", out, cwd=repository, timeout=600)
    assert result.code == 0, f"{result.stdout}\n{result.stderr}"
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    return {row["trial"]: row for row in rows}


def smooth(line: dict[str, float]) -> dict[str, float]:
    """Without counts, which the smallest difference may change by one."""
    return {name: value for name, value in line.items() if "clipfrac" not in name}


@pytest.mark.timeout(900)  # the first waits for all
@pytest.mark.parametrize("trial", EQUAL, ids=lambda trial: trial.name)
def test_every_strategy_is_one_process(found: dict[str, dict[str, Any]], trial: Trial) -> None:
    row, alone = found[trial.name], found[trial.alone.name]
    assert "error" not in row, row["error"]
    assert "error" not in alone, alone["error"]
    assert len(row["metrics"]) == len(alone["metrics"]) == 5  # three rollouts, held-out prompts before and after
    for one, other in zip(row["metrics"], alone["metrics"], strict=True):
        assert smooth(one) == pytest.approx(smooth(other), abs=2e-5, rel=2e-5)
    assert row["weights"].keys() == alone["weights"].keys()
    for name, marks in row["weights"].items():
        assert marks == pytest.approx(alone["weights"][name], abs=1e-5), name


@pytest.mark.parametrize("trial", LOW, ids=lambda trial: trial.name)
def test_low_precision_trains(found: dict[str, dict[str, Any]], trial: Trial) -> None:
    """The self-checks pass: policy and reference start alike, and the first ratio is one."""
    row = found[trial.name]
    assert "error" not in row, row["error"]
    first = next(line for line in row["metrics"] if "objective/kl" in line)
    assert abs(first["objective/kl"]) < 0.1
    assert abs(first["ppo/val/ratio"] - 1) < 0.1


def test_the_policy_moves(found: dict[str, dict[str, Any]]) -> None:
    """Else everything would be equal to everything."""
    for trial in {trial.alone for trial in EQUAL}:
        last = [line for line in found[trial.name]["metrics"] if "objective/kl" in line][-1]
        assert abs(last["objective/kl"]) > 1e-6
        assert last["objective/kl_coef"] != 0.05
