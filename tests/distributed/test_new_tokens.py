"""New tokens are learned alike under every strategy, by the whole model and by LoRA, whose reference is the model
without it; killed and resumed too."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from tests.cli import largest_weight_difference, losses
from tests.forked_runs import SHARED, Leg, four_steps, live, train

pytestmark = pytest.mark.slow
TOKENS = ["<tool>", "<yes>", "<no>"]


@dataclass(frozen=True)
class Trial:
    model: str
    """Is llama, whose head is its own, qwen2, whose is its embeddings, or t5, whose encoder and decoder share them."""
    strategy: str
    adapter: str = "full"
    quantization: str | None = None
    stage: str = "sft"

    @property
    def name(self) -> str:
        return "-".join(map(str, vars(self).values()))

    @property
    def alone(self) -> Trial:
        """The trial it must equal."""
        return Trial(self.model, "single", self.adapter, self.quantization, self.stage)


EQUAL = [
    *(Trial("qwen2", strategy, adapter) for adapter in ("full", "lora") for strategy in SHARED),
    *(Trial("llama", strategy, "lora") for strategy in SHARED),
    *(Trial(model, strategy) for model in ("llama", "t5") for strategy in ("zero3", "fsdp2")),
    *(Trial("llama", strategy, "lora", "4bit") for strategy in ("ddp", "zero3")),
    *(Trial(model, strategy, "lora", stage="dpo") for model in ("llama", "qwen2") for strategy in ("zero3", "fsdp2")),
]
TRIALS = list(dict.fromkeys([*(trial.alone for trial in EQUAL), *EQUAL]))


def config_of(trial: Trial) -> dict[str, Any]:
    processes = 1 if trial.strategy == "single" else 2
    learned = {"completion": "{answer}"} if trial.stage == "sft" else {"chosen": "{answer}", "rejected": "{other}"}
    return {
        "stage": trial.stage,
        "name": trial.name,
        "model": {"path": f"builtin:tiny-{trial.model}", "new_tokens": TOKENS},
        "data": {
            "train": "rows.jsonl",
            "validation": "held.jsonl",
            "max_length": 64,
            "prompt": "{prompt}",
            **learned,
        },
        "adapter": {"type": "lora", "r": 4, "lora_alpha": 16} if trial.adapter == "lora" else None,
        "quantization": trial.quantization,
        "train": four_steps(processes),
        "parallel": {"strategy": trial.strategy, "num_processes": processes, "device": "cpu"},
    }


def write_rows(folder: Path) -> None:
    for name, count in (("rows", 8), ("held", 5)):
        rows = [
            {"prompt": f"{name} <tool> {n}", "answer": f"{TOKENS[1 + n % 2]}!" * (1 + n % 3), "other": "<no>?"}
            for n in range(count)
        ]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("new-tokens")
    write_rows(place)
    return train({trial.name: config_of(trial) for trial in TRIALS}, place, timeout=600)


@pytest.mark.timeout(900)  # the first waits for all
@pytest.mark.parametrize("trial", EQUAL, ids=lambda trial: trial.name)
def test_one_trajectory(runs: dict[str, Path], trial: Trial) -> None:
    alone, shared = runs[trial.alone.name], runs[trial.name]
    assert losses(shared) == pytest.approx(losses(alone), rel=2e-5, abs=2e-6)
    assert largest_weight_difference(shared, alone) <= 1e-5
    assert abs(losses(shared)[1] - losses(shared)[4]) > 1e-3, "it learns"


def test_lora_saves_the_rows_and_no_whole_embeddings(runs: dict[str, Path]) -> None:
    for model, tables in (("llama", 2), ("qwen2", 1)):
        saved = load_file(runs[Trial(model, "fsdp2", "lora").name] / "model" / "adapter_model.safetensors")
        rows = [tuple(weight.shape) for name, weight in saved.items() if "lora_" not in name]
        assert rows == [(3, 64)] * tables


@pytest.mark.timeout(600)
def test_killed_and_resumed_is_straight(tmp_path: Path) -> None:
    write_rows(tmp_path)
    lives: dict[str, list[Leg]] = {}
    kinds = {"full": Trial("qwen2", "single"), "lora": Trial("qwen2", "ddp", "lora")}
    for kind, trial in kinds.items():
        config = config_of(trial)
        config["train"] = {**config["train"], "max_steps": 8, "save_steps": 2, "async_save": False}
        straight, killed = ({**config, "name": f"{kind}-{how}"} for how in ("straight", "killed"))
        lives |= {f"{kind}-straight": [Leg(straight)], f"{kind}-killed": [Leg(killed, kill_after=3), Leg(killed)]}
    went_on = live(lives, tmp_path)
    for kind in kinds:
        straight, killed = (tmp_path / "runs" / f"{kind}-{how}" for how in ("straight", "killed"))
        assert went_on[f"{kind}-killed"][-1] > 0, "it went on from a checkpoint"
        assert losses(killed) == losses(straight)
        assert largest_weight_difference(killed, straight) == 0
