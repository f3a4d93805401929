"""Train the trials of test_distillation.py, one after another, and say what came of each.

    python -m tests.distributed.distill_cells OUT [NAME ...]

As the distill stage does it: plan, runtime, models, engine and loop are the real ones; ranks are forked from this
process. OUT gets a JSON line a trial."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false", OMP_NUM_THREADS="1")

from safetensors.torch import load_file

from scaleup.artifacts.run_folder import RunFolder
from scaleup.config.load import load_mapping
from scaleup.launcher.prepare import prepare_run
from scaleup.plan.resolve import resolve
from scaleup.plan.types import Plan
from tests.distributed.ppo_cells import _marks
from tests.distributed.test_distillation import TRIALS, Trial
from tests.forked import be_ready_to_fork, fork, in_children

TEXTS = ["hello", "what a film it was", "a", "the story of it", "good", "bad but long enough", "xyz", "there was one"]
TEACHERS = {"llama": "qwen2", "bert": "bert-classifier"}
LANGUAGE = {"prompt": "Say {text}", "completion": "{text}"}
ADAPTERS: dict[str, Any] = {
    "full": None,
    "lora": {"type": "lora", "r": 4, "lora_alpha": 16, "target_modules": "all-linear"},
}


def config_of(trial: Trial, folder: Path) -> dict[str, Any]:
    """Batches of 4 rows: on one process at once, on two of them 2 each."""
    processes = 1 if trial.strategy == "single" else 2
    hidden = {"weight": 0.5, "projection": trial.projection, "layers": [[0, 1], [1, 1]]}
    return {
        "stage": "distill",
        "name": trial.name,
        "runs_dir": str(folder / "runs"),
        "model": {"path": f"builtin:tiny-{trial.model}"},
        "teacher": {"path": f"builtin:tiny-{TEACHERS.get(trial.model, trial.model)}"},
        "distill": {
            "divergence": trial.divergence,
            "temperature": 2.0,
            "alpha": 0.7,
            **({"cache": {"top_k": trial.cache}} if trial.cache else {"hidden": hidden}),
        },
        "data": {
            "root": str(folder),
            "train": "rows.jsonl",
            "validation": "held.jsonl",
            "max_length": 32,
            **({"text": "{text}", "label": "kind"} if trial.model == "bert" else LANGUAGE),
        },
        "adapter": ADAPTERS[trial.adapter],
        "quantization": trial.quantization,
        "train": {
            "max_steps": 4,
            "learning_rate": 0.1,
            "optimizer": "sgd",
            "lr_scheduler_type": "constant",
            "per_device_train_batch_size": 4 // processes,
            "per_device_eval_batch_size": 3,
            "eval_steps": 2,
        },
        "gradient_checkpointing": trial.gradient_checkpointing,
        "mixed_precision": trial.precision,
        "parallel": {"strategy": trial.strategy, "num_processes": processes, "device": "cpu"},
    }


def rank_main(run: RunFolder, out: Path) -> None:
    from scaleup.distributed.runtime import Runtime
    from scaleup.stages import distill

    config, plan = run.config, Plan.read(run.plan_file)
    runtime = Runtime.start(plan.group("policy"), timeout_seconds=60, run_folder=run.path)
    distill.run(config, plan, runtime, run)  # type: ignore[arg-type]
    out.write_text("{}")


def found_in(run: RunFolder) -> dict[str, Any]:
    lines = [json.loads(line) for line in run.metrics_file.read_text().splitlines()]
    weights = load_file(next(run.model.glob("*model.safetensors")))
    return {
        "losses": [line["loss"] for line in lines if "loss" in line],
        "eval_losses": [line["eval_loss"] for line in lines if "eval_loss" in line],
        "weights": {name: _marks(part) for name, part in weights.items()},
    }


def trained(trial: Trial, folder: Path) -> dict[str, Any]:
    try:
        config, plan = resolve(load_mapping(config_of(trial, folder)), peaks=False)
        run = RunFolder(Path(plan.run_folder))
        prepare_run(run, config, plan)
        fork(run, plan, rank_main)
        return {"trial": trial.name, **found_in(run)}
    except Exception as error:
        return {"trial": trial.name, "error": f"{type(error).__name__}: {error}"}


def main() -> None:
    out, *names = sys.argv[1:]
    be_ready_to_fork()
    with tempfile.TemporaryDirectory() as place, Path(out).open("w", encoding="utf-8") as file:
        folder = Path(place)
        for name, texts in (("rows", TEXTS), ("held", [text.upper() for text in TEXTS[:5]])):
            rows = [json.dumps({"text": text, "kind": len(text) % 2}) + "\n" for text in texts]
            (folder / f"{name}.jsonl").write_text("".join(rows), encoding="utf-8")
        wanted = [trial for trial in TRIALS if trial.name in names or not names]
        for _, row in in_children({trial.name: partial(trained, trial, folder) for trial in wanted}):
            file.write(json.dumps(row) + "\n")
            file.flush()


if __name__ == "__main__":
    main()
