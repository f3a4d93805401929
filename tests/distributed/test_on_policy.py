"""On-policy distillation under every strategy: the same answers of the student's own, so the same trajectory and end;
and killed and resumed = straight."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSeq2SeqLM

from scaleup.models.builtin import build
from tests.cli import differing, folder_of, largest_weight_difference, losses, metrics
from tests.forked_runs import SHARED, Leg, four_steps, live

pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Trial:
    model: str
    strategy: str
    adapter: str = "full"
    quantization: str | None = None
    gathers: bool | str = "auto"
    precision: str = "no"

    @property
    def name(self) -> str:
        return "-".join(map(str, vars(self).values()))

    @property
    def alone(self) -> Trial:
        """The trial it must equal."""
        return Trial(self.model, "single", self.adapter, self.quantization)


EQUAL = [
    *(Trial("llama", strategy) for strategy in SHARED),
    *(Trial("llama", strategy, gathers=False) for strategy in ("zero3", "fsdp2")),
    *(Trial("t5", strategy) for strategy in ("ddp", "zero3", "fsdp2")),
    *(Trial("bart", strategy) for strategy in ("ddp", "zero3")),
    *(Trial("llama", strategy, "lora") for strategy in ("ddp", "zero3", "fsdp2")),
    Trial("llama", "ddp", "lora", quantization="4bit"),
]
"""BART's head is not plain: its loss comes from logits. Weights are gathered for generation, or layer by layer."""
LOW = [Trial("llama", strategy, precision="bf16") for strategy in ("zero3", "fsdp2")]
TRIALS = list(dict.fromkeys([*(trial.alone for trial in EQUAL), *EQUAL, *LOW]))
KILLED = [Trial("llama", "zero3"), Trial("t5", "ddp")]
ADAPTERS: dict[str, Any] = {
    "full": None,
    "lora": {"type": "lora", "r": 4, "lora_alpha": 16, "target_modules": "all-linear"},
}
PROMPTS = ["hello", "what a film it was", "a", "the story of it", "good", "bad but long enough", "xyz", "there was one"]


def config_of(trial: Trial) -> dict[str, Any]:
    processes = 1 if trial.strategy == "single" else 2
    return {
        "stage": "distill",
        "name": trial.name,
        "model": {"path": f"builtin:tiny-{trial.model}"},
        "teacher": {"path": "builtin:tiny-qwen2" if trial.model == "llama" else f"teachers/{trial.model}"},
        "distill": {
            "mode": "on_policy",
            "divergence": "reverse_kl" if trial.model == "llama" else "jsd",
            "alpha": 1,
            "hidden": {"weight": 0.1, "projection": True} if trial.model == "t5" else None,
            "generation": {"temperature": 1, "max_new_tokens": 6, "top_p": 0.9 if trial.model == "t5" else 1},
        },
        "data": {"train": "rows.jsonl", "validation": "held.jsonl", "prompt": "{text}", "max_length": 24},
        "adapter": ADAPTERS[trial.adapter],
        "quantization": trial.quantization,
        "mixed_precision": trial.precision,
        "train": {**four_steps(processes), "save_steps": 2},
        "parallel": {
            "strategy": trial.strategy,
            "num_processes": processes,
            "device": "cpu",
            "gather_for_generation": trial.gathers,
        },
    }


def write_teacher(name: str, folder: Path) -> None:
    """Write another model than the student: its weights are moved."""
    build(f"tiny-{name}", folder)
    model = AutoModelForSeq2SeqLM.from_pretrained(folder)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    model.save_pretrained(folder)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where all runs are."""
    place = tmp_path_factory.mktemp("on-policy")
    for name, texts in (("rows", PROMPTS), ("held", [text.upper() for text in PROMPTS[:5]])):
        (place / f"{name}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    for name in ("t5", "bart"):
        write_teacher(name, place / "teachers" / name)
    lives = {trial.name: [Leg(config_of(trial))] for trial in TRIALS}
    for trial in KILLED:
        config = differing(config_of(trial), {"name": f"killed-{trial.name}"})
        lives[f"killed-{trial.name}"] = [Leg(config, kill_after=2), Leg(config)]
    live(lives, place, timeout=600)
    return place


def eval_losses(folder: Path) -> list[float]:
    return [line["eval_loss"] for line in metrics(folder) if "eval_loss" in line]


def assert_equal(one: Path, other: Path) -> None:
    assert len(losses(one)) == 4 and len(eval_losses(one)) == 2
    assert losses(one) == pytest.approx(losses(other), rel=2e-5)
    assert eval_losses(one) == pytest.approx(eval_losses(other), rel=2e-5)
    assert largest_weight_difference(one, other) <= 1e-5


@pytest.mark.timeout(900)  # the first waits for all
@pytest.mark.parametrize("trial", EQUAL, ids=lambda trial: trial.name)
def test_every_strategy_is_one_process(place: Path, trial: Trial) -> None:
    one, other = (folder_of(config_of(each), place) for each in (trial, trial.alone))
    assert_equal(one, other)
    lengths = [[line["completions/mean_length"] for line in metrics(each) if "loss" in line] for each in (one, other)]
    assert lengths[0] == lengths[1] and 1 <= min(lengths[0]) <= max(lengths[0]) <= 6


@pytest.mark.parametrize("trial", KILLED, ids=lambda trial: trial.name)
def test_killed_and_resumed_is_straight(place: Path, trial: Trial) -> None:
    """A run that goes on has no answers from before: so it also tells that none of the straight run's were stale."""
    config = config_of(trial)
    assert_equal(folder_of(differing(config, {"name": f"killed-{trial.name}"}), place), folder_of(config, place))


@pytest.mark.parametrize("trial", [*{trial.alone: None for trial in EQUAL}, *LOW], ids=lambda trial: trial.name)
def test_it_learns(place: Path, trial: Trial) -> None:
    found = eval_losses(folder_of(config_of(trial), place))
    assert found[1] < found[0]
