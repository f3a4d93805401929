"""Adapters and quantized bases under every strategy that the compatibility table does not refuse are one training.

Sums of the same numbers in another order, as in test_strategies: SGD in float32, 12 steps, two runs at a time. Which
cells the table may call ok is what this file has shown."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file

from scaleup.plan.compat import Cell, verdict
from tests.cli import differing, interrupt, largest_loss_difference, losses, reached, run, worker_ids

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
    "ia3": {"adapter": {"type": "ia3"}},
    "selective": {"adapter": {"type": "selective", "parameters": ["*layers.1.*", "*norm*"]}},
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
    "prefix": {
        "adapter": {"type": "prefix", "num_virtual_tokens": 8, "prefix_projection": True},
        "train.learning_rate": 3.0,
    },
}
STRATEGIES = {
    "lora": ("single", "zero1", "zero2", "zero3", "fsdp2"),
    "8bit": ("single", "zero1", "zero2"),
    "4bit": ("single", "zero2"),
    "ia3": ("zero3",),
    "selective": ("zero3",),
    "prompt_tuning": ("single", "zero3"),
    "prefix": ("single", "zero3"),
    "adalora": ("single",),
}
CELLS = [(kind, strategy) for kind, strategies in STRATEGIES.items() for strategy in strategies]
"""Each is compared with DDP."""


def config_of(kind: str, strategy: str) -> dict[str, Any]:
    split = SINGLE if strategy == "single" else {"parallel.strategy": strategy}
    return differing(BASE | {"name": f"{kind}-{strategy}"}, KINDS[kind] | split)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[tuple[str, str], Future[Path]]]:
    place = tmp_path_factory.mktemp("adapters")
    chance = random.Random(0)
    rows = []
    for _ in range(40):
        text = "".join(chance.choices("abcdefghi", k=chance.randint(3, 80)))
        cut = max(1, len(text) // 2)
        rows.append({"prompt": text[:-cut], "completion": text[-cut:]})
    (place / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    wanted = [(kind, "ddp") for kind in KINDS] + CELLS
    with ThreadPoolExecutor(2) as pool:
        yield {cell: pool.submit(run, config_of(*cell), cwd=place) for cell in wanted}
        pool.shutdown(cancel_futures=True)


def weights_of(folder: Path, kind: str) -> dict[str, Any]:
    name = "model.safetensors" if kind == "selective" else "adapter_model.safetensors"
    return load_file(folder / "model" / name)


@pytest.mark.parametrize(("kind", "strategy"), CELLS)
def test_every_strategy_is_the_trajectory_of_ddp(
    runs: dict[tuple[str, str], Future[Path]], kind: str, strategy: str
) -> None:
    ddp, other = runs[kind, "ddp"].result(), runs[kind, strategy].result()
    assert losses(ddp)[12] < losses(ddp)[1] - 0.1, "a model that never learns would prove nothing"
    left, right = weights_of(ddp, kind), weights_of(other, kind)
    assert left.keys() == right.keys()
    weight = max(float(abs(left[name] - right[name]).max(initial=0)) for name in left)  # a rank may be 0
    loss = largest_loss_difference(ddp, other)
    print(f"{kind} {strategy}: largest difference of a loss {loss:.1e}, of a weight {weight:.1e}")
    assert loss <= TOLERANCE
    assert weight <= TOLERANCE


@pytest.mark.parametrize("kind", ["lora", "8bit", "4bit"])
def test_checkpoints_hold_what_is_trained_alone(runs: dict[tuple[str, str], Future[Path]], kind: str) -> None:
    stored = load_file(runs[kind, "ddp"].result() / "checkpoints/step-00000012/model.safetensors")
    assert stored and all("lora_" in name for name in stored)


def test_none_of_these_cells_is_refused() -> None:
    for kind, strategy in CELLS:
        bits = kind if kind in ("8bit", "4bit") else None
        adapter = "lora" if bits else kind
        assert verdict(Cell(strategy, bits, adapter, "no")).status != "refused"


def test_adalora_that_was_killed_ends_like_one_that_was_not(tmp_path: Path) -> None:
    """To the last bit, on two processes: while ranks go down, a worker is killed between two checkpoints."""
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
    expected = run(straight, cwd=tmp_path)

    def kill_a_worker(process: subprocess.Popen[str], folder: Path) -> None:
        os.kill(chance.choice(worker_ids(folder, "1")), signal.SIGKILL)

    result = interrupt(killed, cwd=tmp_path, when=reached(18), do=kill_a_worker)
    assert result.code == 1
    assert not (tmp_path / "runs/killed/model").exists()
    found = run(killed, "--resume", cwd=tmp_path)
    assert losses(found) == losses(expected)
    left, right = weights_of(found, "adalora"), weights_of(expected, "adalora")
    assert left.keys() == right.keys() and all((left[name] == right[name]).all() for name in left)
    settings = [json.loads((folder / "model/adapter_config.json").read_text()) for folder in (found, expected)]
    assert settings[0]["rank_pattern"] == settings[1]["rank_pattern"]
    kept = [sum(ranks) for ranks in settings[0]["rank_pattern"].values()]
    assert sum(kept) == 3 * len(kept), "the wanted ranks on average"
