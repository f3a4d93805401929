"""Adapters and quantized bases under every strategy that the compatibility table does not refuse are one training.

From the config to what is saved, for some cells; tests/distributed/test_compatibility.py trains all of them. Sums of
the same numbers in another order, as in test_strategies: SGD in float32, 12 steps."""

from __future__ import annotations

import json
import random
from pathlib import Path
from statistics import mean
from typing import Any

import pytest
from safetensors.numpy import load_file
from torch.distributed.checkpoint import FileSystemReader

from tests.cli import differing, folder_of, largest_loss_difference, largest_weight_difference, losses
from tests.forked_runs import Leg, live, train

pytestmark = pytest.mark.slow
TOLERANCE = 1e-5

BASE: dict[str, Any] = {
    "stage": "sft",
    "model": {"path": "builtin:tiny-llama"},
    "data": {"train": "rows.jsonl", "prompt": "{prompt}", "completion": "{completion}", "max_length": 128},
    "adapter": {"type": "lora", "r": 4, "lora_alpha": 16, "target_modules": "all-linear"},
    "train": {
        "max_steps": 12,
        "learning_rate": 0.3,
        "lr_scheduler_type": "constant",
        "optimizer": "sgd",
        "per_device_train_batch_size": 4,
        "save_steps": 6,
    },
    "parallel": {"num_processes": 2},
}
SINGLE = {"parallel.strategy": "single", "parallel.num_processes": 1, "train.per_device_train_batch_size": 8}
KINDS: dict[str, dict[str, Any]] = {
    "lora": {},
    "8bit": {"quantization": "8bit"},
    "4bit": {"quantization": "4bit"},
    "prompt_tuning": {
        "adapter": {"type": "prompt_tuning", "num_virtual_tokens": 8, "prompt_tuning_init": "SAMPLE_VOCAB"},
        "train.learning_rate": 1.0,
    },
    "adalora": {
        "adapter": {
            "type": "adalora",
            "init_r": 6,
            "target_r": 3,
            "tinit": 2,
            "tfinal": 3,
            "deltaT": 2,
            "lora_alpha": 16,
            "orth_reg_weight": 0.1,
            "target_modules": "all-linear",
        },
        "train.learning_rate": 3.0,
    },
}
STRATEGIES = {"lora": "fsdp2", "8bit": "zero2", "4bit": "zero3", "prompt_tuning": "zero3", "adalora": "single"}
CELLS = list(STRATEGIES.items())
"""Each is compared with DDP."""


def config_of(kind: str, strategy: str) -> dict[str, Any]:
    split = SINGLE if strategy == "single" else {"parallel.strategy": strategy}
    return differing(BASE | {"name": f"{kind}-{strategy}"}, KINDS[kind] | split)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("adapters")
    chance = random.Random(0)
    rows = []
    for _ in range(40):
        text = "".join(chance.choices("abcdefghi", k=chance.randint(3, 80)))
        cut = max(1, len(text) // 2)
        rows.append({"prompt": text[:-cut], "completion": text[-cut:]})
    (place / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    wanted = [(kind, "ddp") for kind in KINDS] + CELLS
    return train({f"{kind}-{strategy}": config_of(kind, strategy) for kind, strategy in wanted}, place)


@pytest.fixture(scope="module")
def on_reviews(tmp_path_factory: pytest.TempPathFactory, repository: Path) -> dict[str, Path]:
    rows = repository / "data" / "reviews" / "train.jsonl"
    if not rows.is_file():
        pytest.skip("data/reviews is not there: make setup prepares it")
    place = tmp_path_factory.mktemp("reviews")
    data = {"train": str(rows), "prompt": "Review: {text}\nSentiment:", "completion": " {label}", "max_length": 512}
    steps = {"max_steps": 50, "learning_rate": 1e-2, "lr_scheduler_type": "constant", "per_device_train_batch_size": 8}
    config = BASE | {"data": data, "train": steps, "parallel": {"num_processes": 1}}
    wanted = {"none": None, "8bit": "8bit", "4bit": "4bit"}
    return train(
        {name: config | {"name": f"reviews-{name}", "quantization": bits} for name, bits in wanted.items()}, place
    )


@pytest.mark.parametrize(("kind", "strategy"), CELLS)
def test_every_strategy_is_the_trajectory_of_ddp(runs: dict[str, Path], kind: str, strategy: str) -> None:
    ddp, other = runs[f"{kind}-ddp"], runs[f"{kind}-{strategy}"]
    assert losses(ddp)[12] < losses(ddp)[1] - 0.1, "a model that never learns would prove nothing"
    weight = largest_weight_difference(ddp, other)
    loss = largest_loss_difference(ddp, other)
    print(f"{kind} {strategy}: largest difference of a loss {loss:.1e}, of a weight {weight:.1e}")
    assert loss <= TOLERANCE
    assert weight <= TOLERANCE


@pytest.mark.parametrize("kind", ["lora", "8bit", "4bit"])
def test_checkpoints_hold_what_is_trained_alone(runs: dict[str, Path], kind: str) -> None:
    stored = load_file(runs[f"{kind}-ddp"] / "checkpoints/step-00000012/model.safetensors")
    assert stored and all("lora_" in name for name in stored)


def test_sharded_checkpoints_hold_what_is_trained_alone(runs: dict[str, Path]) -> None:
    """Under FSDP2, where the frozen base is sharded as well."""
    folder = runs["lora-fsdp2"] / "checkpoints/step-00000012/pytorch_model_fsdp_0"
    stored = FileSystemReader(folder).read_metadata().state_dict_metadata
    assert stored and all("lora_" in name for name in stored)


def test_adalora_that_was_killed_ends_like_one_that_was_not(tmp_path: Path) -> None:
    """To the last bit, on two processes: while ranks go down, both are killed between two checkpoints."""
    chance = random.Random(1)
    rows = [
        {"prompt": "".join(chance.choices("abcde", k=20)), "completion": chance.choice("xyz") * 3} for _ in range(40)
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    changes = {
        "adapter": KINDS["adalora"]["adapter"] | {"tfinal": 6, "lora_dropout": 0.1},
        "train.max_steps": 40,
        "train.optimizer": "adamw",
        "train.learning_rate": 0.01,
        "train.gradient_accumulation_steps": 2,
        "train.save_steps": 5,
    }
    straight, killed = (differing(BASE | {"name": name}, changes) for name in ("straight", "killed"))
    first_steps = live({"straight": [Leg(straight)], "killed": [Leg(killed, kill_after=17), Leg(killed)]}, tmp_path)
    assert 1 < first_steps["killed"][1] < 40
    expected, found = (folder_of(config, tmp_path) for config in (straight, killed))
    assert losses(found) == losses(expected)
    assert largest_weight_difference(found, expected) == 0
    settings = [json.loads((folder / "model/adapter_config.json").read_text()) for folder in (found, expected)]
    assert settings[0]["rank_pattern"] == settings[1]["rank_pattern"]
    kept = [sum(ranks) for ranks in settings[0]["rank_pattern"].values()]
    assert sum(kept) == 3 * len(kept), "the wanted ranks on average"


@pytest.mark.parametrize("bits", ["8bit", "4bit"])
def test_quantized_learns_as_much(on_reviews: dict[str, Path], bits: str) -> None:
    """LoRA on real text for 50 steps: the loss of the last ten within 1 % of that without quantization."""
    plain, low = (losses(on_reviews[key]) for key in ("none", bits))
    ends = [mean(found[step] for step in range(41, 51)) for found in (plain, low)]
    print(f"{bits}: {ends[1]:.4f}, without {ends[0]:.4f}")
    assert ends[0] < plain[1] - 1.0
    assert ends[1] == pytest.approx(ends[0], rel=0.01)
    assert any(plain[step] != low[step] for step in plain), "nothing was quantized"
