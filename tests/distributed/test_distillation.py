"""Distillation under every strategy, the teacher sharded too: with the same rows, the same trajectory and student."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open

from scaleup.plan.compat import table
from scaleup.plan.stages import planner_named
from tests.cli import largest_weight_difference, losses, metrics
from tests.forked_runs import SHARED, four_steps, train

pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Trial:
    model: str
    strategy: str
    adapter: str = "full"
    quantization: str | None = None
    precision: str = "no"
    divergence: str = "forward_kl"
    projection: bool = True
    gradient_checkpointing: bool = False
    cache: int | None = None
    """Of so many tokens."""

    @property
    def name(self) -> str:
        return "-".join(map(str, vars(self).values()))

    @property
    def alone(self) -> Trial:
        """The trial it must equal."""
        same = (self.adapter, self.quantization, self.precision, self.divergence)
        return Trial(self.model, "single", *same, cache=self.cache)


EQUAL = [
    *(Trial("llama", strategy) for strategy in SHARED),
    *(Trial("t5", strategy, divergence="jsd") for strategy in ("ddp", "zero2", "zero3", "fsdp2")),
    *(Trial("llama", strategy, "lora") for strategy in SHARED),
    *(Trial("bart", strategy) for strategy in ("ddp", "zero3")),
    *(Trial("bert", strategy) for strategy in ("ddp", "zero2", "zero3", "fsdp2")),
    Trial("llama", "zero3", gradient_checkpointing=True),
    Trial("t5", "ddp", divergence="jsd", gradient_checkpointing=True),
    Trial("llama", "ddp", "lora", quantization="4bit"),
    *(Trial("llama", strategy, cache=20) for strategy in SHARED),
    Trial("llama", "zero3", "lora", cache=20),
    Trial("t5", "zero3", cache=20),
    Trial("bart", "zero3", cache=20),
]
"""BART's head is not plain: its loss comes from logits. BERT is a classifier, its student has a new head."""
LOW = [Trial("llama", strategy, precision="bf16") for strategy in ("ddp", "zero3", "fsdp2")]
TRIALS = list(dict.fromkeys([*(trial.alone for trial in EQUAL), *EQUAL, *LOW]))


TEXTS = ["hello", "what a film it was", "a", "the story of it", "good", "bad but long enough", "xyz", "there was one"]
TEACHERS = {"llama": "qwen2", "bert": "bert-classifier"}
LANGUAGE = {"prompt": "Say {text}", "completion": "{text}"}
ADAPTERS: dict[str, Any] = {
    "full": None,
    "lora": {"type": "lora", "r": 4, "lora_alpha": 16, "target_modules": "all-linear"},
}


def config_of(trial: Trial) -> dict[str, Any]:
    processes = 1 if trial.strategy == "single" else 2
    hidden = {"weight": 0.5, "projection": trial.projection, "layers": [[0, 1], [1, 1]]}
    return {
        "stage": "distill",
        "name": trial.name,
        "model": {"path": f"builtin:tiny-{trial.model}"},
        "teacher": {"path": f"builtin:tiny-{TEACHERS.get(trial.model, trial.model)}"},
        "distill": {
            "divergence": trial.divergence,
            "temperature": 2.0,
            "alpha": 0.7,
            **({"cache": {"top_k": trial.cache}} if trial.cache else {"hidden": hidden}),
        },
        "data": {
            "train": "rows.jsonl",
            "validation": "held.jsonl",
            "max_length": 32,
            **({"text": "{text}", "label": "kind"} if trial.model == "bert" else LANGUAGE),
        },
        "adapter": ADAPTERS[trial.adapter],
        "quantization": trial.quantization,
        "train": four_steps(processes),
        "gradient_checkpointing": trial.gradient_checkpointing,
        "mixed_precision": trial.precision,
        "parallel": {"strategy": trial.strategy, "num_processes": processes, "device": "cpu"},
    }


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("distill")
    for name, texts in (("rows", TEXTS), ("held", [text.upper() for text in TEXTS[:5]])):
        rows = [json.dumps({"text": text, "kind": len(text) % 2}) + "\n" for text in texts]
        (place / f"{name}.jsonl").write_text("".join(rows), encoding="utf-8")
    return train({trial.name: config_of(trial) for trial in TRIALS}, place, timeout=600)


def test_every_cell_that_is_ok_is_tried() -> None:
    """Those of stage distill in docs/compatibility.md."""
    cells = table(planner_named("distill").tested, "distill")
    ok = {(c.adapter, c.strategy, c.quantization, c.precision) for c, verdict in cells if verdict.status == "ok"}
    assert ok == {(trial.adapter, trial.strategy, trial.quantization, trial.precision) for trial in TRIALS}


def eval_losses(folder: Path) -> list[float]:
    return [line["eval_loss"] for line in metrics(folder) if "eval_loss" in line]


@pytest.mark.timeout(900)  # the first waits for all
@pytest.mark.parametrize("trial", EQUAL, ids=lambda trial: trial.name)
def test_every_strategy_is_one_process(runs: dict[str, Path], trial: Trial) -> None:
    one, other = runs[trial.name], runs[trial.alone.name]
    assert len(losses(one)) == 4
    assert losses(one) == pytest.approx(losses(other), rel=2e-5)
    assert eval_losses(one) == pytest.approx(eval_losses(other), rel=2e-5)
    assert largest_weight_difference(one, other) <= 1e-5


@pytest.mark.parametrize("trial", [*{trial.alone: None for trial in EQUAL}, *LOW], ids=lambda trial: trial.name)
def test_it_learns(runs: dict[str, Path], trial: Trial) -> None:
    folder = runs[trial.name]
    assert losses(folder)[4] < losses(folder)[1] - 1e-3
    assert eval_losses(folder)[-1] < eval_losses(folder)[0] - 1e-3
    with safe_open(next(folder.glob("model/*model.safetensors")), "np") as file:
        names = list(file.keys())
    assert names
    assert not [name for name in names if "teacher" in name or "projections" in name]
