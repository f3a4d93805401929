"""Train the trials of test_ppo.py, one after another, and say what came of each.

    python -m tests.distributed.ppo_cells OUT

As the ppo stage does it: plan, runtime, policy, engine and loop are the real ones; ranks are forked from this process,
and the reward is a function. OUT gets a JSON line a trial."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false", OMP_NUM_THREADS="1")

import torch
from safetensors.torch import load_file

from scaleup.artifacts.run_folder import RunFolder
from scaleup.config.load import load_mapping
from scaleup.launcher.prepare import prepare_run
from scaleup.plan.resolve import resolve
from scaleup.plan.types import Plan
from tests.distributed.test_ppo import TRIALS, Trial
from tests.forked import be_ready_to_fork, fork, in_children

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


def config_of(trial: Trial, folder: Path) -> dict[str, Any]:
    """Batches of 4 rows on one process, of 2 on each of two: so that the micro-batches differ too."""
    return {
        "stage": "ppo",
        "name": trial.name,
        "runs_dir": str(folder / "runs"),
        "model": {"path": f"builtin:tiny-{trial.model}"},
        "data": {
            "root": str(folder),
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
        "reward": {"placement": "function", "function": f"{folder}/reward.py:vowels"},
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


def rank_main(run: RunFolder, out: Path) -> None:
    from scaleup.distributed.runtime import Runtime
    from scaleup.stages import ppo

    config, plan = run.config, Plan.read(run.plan_file)
    runtime = Runtime.start(plan.group("policy"), timeout_seconds=60, run_folder=run.path)
    ppo.run(config, plan, runtime, run)  # type: ignore[arg-type]
    out.write_text("{}")


def found_in(run: RunFolder) -> dict[str, Any]:
    lines = [json.loads(line) for line in run.metrics_file.read_text().splitlines()]
    kept = [{k: v for k, v in line.items() if not k.startswith(("time/", "memory"))} for line in lines]
    weights = {}
    for file in (*run.model.glob("*.safetensors"), run.path / "values" / "values.safetensors"):
        weights |= load_file(file)
    return {"metrics": kept, "weights": {name: _marks(part) for name, part in weights.items()}}


def _marks(part: torch.Tensor) -> list[float]:
    """Some of a weight's values, and its sum: what fits a line of JSON."""
    flat = part.double().flatten()
    return [*flat[:: max(1, len(flat) // 20)].tolist(), float(flat.sum())]


def trained(trial: Trial, folder: Path) -> dict[str, Any]:
    try:
        config, plan = resolve(load_mapping(config_of(trial, folder)), peaks=False)
        run = RunFolder(Path(plan.run_folder))
        prepare_run(run, config, plan)
        fork(run, plan, rank_main)
        return {"trial": trial.name, **found_in(run)}
    except Exception as error:
        return {"trial": trial.name, "error": f"{type(error).__name__}: {error}"}


def main(out: Path) -> None:
    be_ready_to_fork()
    with tempfile.TemporaryDirectory() as name, out.open("w") as lines:
        folder = Path(name)
        (folder / "rows.jsonl").write_text("".join(json.dumps({"text": word}) + "\n" for word in WORDS))
        (folder / "test.jsonl").write_text("".join(json.dumps({"text": f"so {word}"}) + "\n" for word in WORDS[:3]))
        (folder / "reward.py").write_text(REWARD)
        for _, row in in_children({trial.name: partial(trained, trial, folder) for trial in TRIALS}):
            lines.write(json.dumps(row) + "\n")
            lines.flush()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
