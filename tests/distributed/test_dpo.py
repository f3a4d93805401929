"""Learning from preferences under every strategy, the frozen copy sharded too: with the same pairs, the same trajectory
and model."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file

from scaleup.plan.compat import table
from scaleup.plan.stages import planner_named
from tests.cli import largest_weight_difference, losses, metrics
from tests.forked_runs import SHARED, four_steps, train

pytestmark = pytest.mark.slow
LORA = {"type": "lora", "r": 4, "lora_alpha": 16, "target_modules": "all-linear"}


@dataclass(frozen=True)
class Trial:
    model: str
    strategy: str
    adapter: str = "full"
    quantization: str | None = None
    loss: str = "dpo"
    gradient_checkpointing: bool = False
    reference: str = "auto"
    precision: str = "no"

    @property
    def name(self) -> str:
        return "-".join(map(str, vars(self).values()))

    @property
    def alone(self) -> Trial:
        """The trial it must equal: of one process, in float32, with a reference in memory."""
        return Trial(self.model, "single", self.adapter, self.quantization, self.loss)


EQUAL = [
    *(Trial("llama", strategy, adapter) for adapter in ("full", "lora") for strategy in SHARED),
    *(Trial("t5", strategy) for strategy in ("ddp", "zero3", "fsdp2")),
    Trial("llama", "ddp", loss="simpo"),
    Trial("llama", "zero3", gradient_checkpointing=True),
    Trial("llama", "ddp", "lora", gradient_checkpointing=True),
    *(Trial("llama", strategy, "lora", "8bit") for strategy in ("ddp", "zero1", "zero2")),
    *(Trial("llama", strategy, "lora", "4bit") for strategy in ("ddp", "zero1", "zero2", "zero3")),
    *(Trial("llama", strategy, loss="kto") for strategy in ("ddp", "zero2", "zero3", "fsdp2")),
    Trial("llama", "ddp", "lora", loss="kto"),
    Trial("t5", "zero3", loss="kto"),
    *(Trial("llama", strategy, reference="cached") for strategy in ("single", "ddp", "zero3", "fsdp2")),
    Trial("llama", "ddp", "lora", reference="cached"),
    Trial("llama", "ddp", "lora", "4bit", reference="cached"),
    Trial("t5", "ddp", reference="cached"),
    *(Trial("llama", strategy, loss="kto", reference="cached") for strategy in ("single", "fsdp2")),
]
LOW = [
    Trial("llama", strategy, adapter, precision="bf16")
    for adapter in ("full", "lora")
    for strategy in ("single", *SHARED)
]
TRIALS = list(dict.fromkeys([*(trial.alone for trial in EQUAL), *EQUAL, *LOW]))


def config_of(trial: Trial) -> dict[str, Any]:
    processes = 1 if trial.strategy == "single" else 2
    pairs = {"prompt": "{prompt}", "chosen": "{good}", "rejected": "{bad}"}
    single = {"prompt": "{prompt}", "completion": "{good}", "label": "wanted"}
    return {
        "stage": "dpo",
        "name": trial.name,
        "model": {"path": f"builtin:tiny-{trial.model}"},
        "data": {
            "train": "rows.jsonl",
            "validation": "held.jsonl",
            "max_length": 64,
            **(single if trial.loss == "kto" else pairs),
        },
        "dpo": {"loss": trial.loss, "reference": trial.reference},
        "mixed_precision": trial.precision,
        "adapter": LORA if trial.adapter == "lora" else None,
        "quantization": trial.quantization,
        "train": four_steps(processes),
        "gradient_checkpointing": trial.gradient_checkpointing,
        "parallel": {"strategy": trial.strategy, "num_processes": processes, "device": "cpu"},
    }


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The 5 held-out pairs leave two fillers on two processes."""
    place = tmp_path_factory.mktemp("dpo")
    for name, count in (("rows", 8), ("held", 5)):
        rows = [
            {"prompt": f"{name} {n}", "good": " yes" * (1 + n % 3), "bad": " no" * (1 + n % 4), "wanted": n % 3 > 0}
            for n in range(count)
        ]
        (place / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return train({trial.name: config_of(trial) for trial in TRIALS}, place, timeout=800)


@pytest.mark.timeout(1000)  # the first waits for all
@pytest.mark.parametrize("trial", EQUAL, ids=lambda trial: trial.name)
def test_one_trajectory(runs: dict[str, Path], trial: Trial) -> None:
    alone, shared = runs[trial.alone.name], runs[trial.name]
    assert losses(shared) == pytest.approx(losses(alone), rel=2e-5, abs=2e-6)
    assert largest_weight_difference(shared, alone) <= 1e-5
    for one, other in zip(metrics(alone), metrics(shared), strict=True):
        for key in one:
            if key == "rewards/accuracies" and abs(one["rewards/margins"]) < 1e-4:
                continue  # before the first step all rewards are 0 but for rounding, whose sign says nothing
            if "rewards/" in key or "logps/" in key or key in ("eval_loss", "kl", "eval_kl"):
                assert other[key] == pytest.approx(one[key], rel=1e-4, abs=1e-4), key


@pytest.mark.parametrize("trial", [trial for trial in TRIALS if trial.strategy == "single"], ids=lambda t: t.name)
def test_training_moves_the_loss(runs: dict[str, Path], trial: Trial) -> None:
    found = losses(runs[trial.name])
    assert abs(found[1] - found[4]) > 1e-3


@pytest.mark.parametrize("trial", LOW, ids=lambda trial: trial.name)
def test_low_precision_begins_at_the_reference_and_follows_float32(runs: dict[str, Path], trial: Trial) -> None:
    low, alone = losses(runs[trial.name]), losses(runs[trial.alone.name])
    assert low[1] == pytest.approx(math.log(2), abs=5e-3)
    assert low == pytest.approx(alone, abs=2e-2)


@pytest.mark.parametrize("trial", [trial for trial in TRIALS if trial.reference == "cached"], ids=lambda t: t.name)
def test_a_cached_reference_is_in_no_memory(runs: dict[str, Path], trial: Trial) -> None:
    """The plan counts none, and what is kept of it are two numbers a row."""
    folder = runs[trial.name]
    plan = json.loads((folder / "plan.json").read_text())
    assert {memory["reference"] for memory in plan["memory"]} == {0}
    assert load_file(folder / "reference.safetensors")["logps"].shape == (8 + 5, 2)


def test_what_is_ok_is_tried() -> None:
    ok = {cell for cell, verdict in table(planner_named("dpo").tested, "dpo") if verdict.status == "ok"}
    tried = {(trial.adapter, trial.strategy, trial.quantization, trial.precision) for trial in TRIALS}
    assert {(cell.adapter, cell.strategy, cell.quantization, cell.precision) for cell in ok} == tried
