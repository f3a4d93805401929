"""Train every cell of the compatibility table that is ok, or those named, and say what happened in each.

    python -m tests.distributed.cells OUT [STRATEGY,QUANTIZATION,ADAPTER,PRECISION,MODEL[,STAGE] ...]

As the sft, reward and classify stages do it: the plan, the runtime, the model, the engine and the steps are the real
ones; the ranks of a cell are forked from this process. A model is llama, mixtral, t5 or bert. OUT gets a JSON line a
cell: the losses of a few steps over one global batch, which parameters (by their names) had other values after these
than before, and of one process the loss on that batch as it is in the end, and as it is when what was saved is loaded
again."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false", OMP_NUM_THREADS="1")

import numpy as np
import torch

from scaleup.artifacts.run_folder import RunFolder
from scaleup.config.stages.base import SupervisedConfig
from scaleup.config.stages.classify import ClassifyConfig
from scaleup.config.stages.reward import RewardConfig
from scaleup.data.collate import Batch
from scaleup.data.dataset import collator_for
from scaleup.data.labelled import labelled_collator
from scaleup.data.pairs import pair_collator
from scaleup.data.tokenization import LabelledTokens, PairTokens, Tokens
from scaleup.describe.model import model_facts
from scaleup.distributed.engines import base_optimizer
from scaleup.distributed.runtime import Runtime
from scaleup.models.adapted import load_finished
from scaleup.models.adapters import is_adalora
from scaleup.plan.compat import Cell
from scaleup.plan.facts import ModelRequest
from scaleup.plan.types import Plan
from scaleup.train.adalora import RankAllocation
from scaleup.train.classify import class_objective
from scaleup.train.finish import write_result
from scaleup.train.job import Job
from scaleup.train.losses import token_loss_sum
from scaleup.train.model import model_to_train
from scaleup.train.optim import build_optimizer
from scaleup.train.preference import preference_loss
from scaleup.train.step import Objective, evaluate_loss, train_step
from tests.distributed.test_compatibility import trial_name, trials
from tests.forked import be_ready_to_fork, fork, in_children, prepared
from tests.host_reads import HostReads

NUM_STEPS = 6
NUM_ROWS = 4
SELECTED = ["*.1.*", "*norm*"]
TEXT = {"text": "{text}"}
FORMS = {"llama": TEXT, "mixtral": TEXT, "t5": {"prompt": "{text}", "completion": "{text}"}}
PREFERENCES = {"prompt": "{text}", "chosen": "{text}", "rejected": "not {text}"}
OF_STAGE = {"reward": PREFERENCES, "classify": {"text": "{text}", "label": "label"}}
ADAPTERS: dict[str, dict[str, Any] | None] = {
    "full": None,
    "selective": {"type": "selective", "parameters": SELECTED},
    "lora": {"type": "lora", "r": 4, "lora_alpha": 16, "target_modules": "all-linear"},
    "dora": {"type": "lora", "r": 4, "lora_alpha": 16, "use_dora": True},
    "ia3": {"type": "ia3"},
    "adalora": {"type": "adalora", "init_r": 4, "target_r": 3, "lora_alpha": 16, "tfinal": 2, "orth_reg_weight": 0.1},
    "prompt_tuning": {"type": "prompt_tuning", "num_virtual_tokens": 8, "prompt_tuning_init": "SAMPLE_VOCAB"},
    "prefix": {"type": "prefix", "num_virtual_tokens": 8},
}
LEARNING_RATES = {"ia3": 10.0, "adalora": 3.0, "prompt_tuning": 3.0, "prefix": 30.0}
"""Where few numbers are trained they move the loss little."""


def config_of(cell: Cell, name: str, folder: Path) -> dict[str, Any]:
    form = OF_STAGE.get(cell.stage) or FORMS[name]
    return {
        "stage": cell.stage,
        "name": "-".join(map(str, (*dataclasses.astuple(cell), name))),
        "runs_dir": str(folder / "runs"),
        "model": {"path": f"builtin:tiny-{name}"},
        "data": {"root": str(folder), "train": "rows.jsonl", "max_length": 32, **form},
        "adapter": ADAPTERS[cell.adapter],
        "quantization": cell.quantization,
        "train": {
            "max_steps": NUM_STEPS,
            "learning_rate": LEARNING_RATES.get(cell.adapter, 0.1),
            "optimizer": "sgd",
            "per_device_train_batch_size": 2,
        },
        "gradient_checkpointing": name == "t5" and cell.adapter != "prefix",
        "mixed_precision": cell.precision,
        "parallel": {
            "strategy": cell.strategy,
            "num_processes": 1 if cell.strategy == "single" else 2,
            "device": "cpu",
        },
    }


def rank_main(run: RunFolder, out: Path) -> None:
    config, plan = run.config, Plan.read(run.plan_file)
    assert isinstance(config, SupervisedConfig)
    runtime = Runtime.start(plan.group("policy"), timeout_seconds=60, run_folder=run.path)
    model = model_to_train(config, plan.model, runtime.device)
    wrapped, optimizer = runtime.prepare(model, build_optimizer(model, config.train))
    wrapped.train()
    batch, objective = task_of(config, plan, model, runtime)
    if config.quantization == "8bit":  # whose matrices take up their scales in the first pass
        with torch.no_grad():
            objective(wrapped, batch)
    before, trained = frozen_parts(wrapped), runtime.trained_state(wrapped)
    penalty = RankAllocation(model, base_optimizer(optimizer), NUM_STEPS).penalty if is_adalora(model) else None
    with HostReads("deepspeed", "bitsandbytes", "peft") as reads:
        steps = [train_step(runtime, wrapped, optimizer, [batch], objective, 1.0, penalty) for _ in range(NUM_STEPS)]
    losses = [step.loss for step in steps]
    after = runtime.trained_state(wrapped) | frozen_parts(wrapped)
    values = {**before, **trained}
    changed = sorted(name for name, value in values.items() if not torch.equal(value, after[name]))
    found: dict[str, Any] = {"losses": losses, "changed": changed, "all": sorted(values), "reads": reads.places}
    if runtime.world == 1:
        job = Job(config, plan, runtime, run)
        runtime.hand_out(wrapped, lambda weights: write_result(job, wrapped, weights, run.model))
        found["live"] = evaluate_loss(runtime, wrapped, [batch], objective)
        found["reloaded"] = evaluate_loss(runtime, finished(config, run), [batch], objective)
    out.write_text(json.dumps(found))


def task_of(config: SupervisedConfig, plan: Plan, model: Any, runtime: Runtime) -> tuple[Batch, Objective]:
    """This rank's part of the global batch, and the loss on it. Rows are of unlike length, and end with an eos."""
    ids = [np.arange(3 + row, 3 + row + 8 + 4 * row, dtype=np.int32) % 250 + 3 for row in range(NUM_ROWS)]
    end = np.array([2 if plan.model.pooling == "last" else 1], np.int32)
    if isinstance(config, ClassifyConfig):
        texts = [LabelledTokens(np.append(row, end), number % 2) for number, row in enumerate(ids)]
        collate = labelled_collator(0, int(end[0]))
        return collate(texts[runtime.rank :: runtime.world]), class_objective(plan.model.targets.problem)
    if isinstance(config, RewardConfig):
        pairs = [PairTokens(np.append(row, end), np.append(row[::-1][:9], end), 0.5) for row in ids]
        collate = pair_collator(0, int(end[0]))
        return collate(pairs[runtime.rank :: runtime.world]), preference_loss(config.reward.center_coefficient)
    rows = [Tokens(row, row) for row in ids][runtime.rank :: runtime.world]
    shift_right = getattr(model, "prepare_decoder_input_ids_from_labels", None)
    return collator_for(plan.model.task, 0, shift_right, False)(rows), token_loss_sum


def finished(config: SupervisedConfig, run: RunFolder) -> Any:
    """What `evaluate` and `generate` would load of the run."""
    asked = ModelRequest(path=str(run.model), tokenizer=config.model.path, quantization=config.quantization)
    facts = model_facts(asked)
    return load_finished(asked, facts, config.quantization, config.mixed_precision, torch.device("cpu"))


def frozen_parts(wrapped: Any) -> dict[str, torch.Tensor]:
    """What this rank has of each frozen parameter, and of the scales of quantized ones."""
    found = {}
    for name, parameter in getattr(wrapped, "module", wrapped).named_parameters():
        if parameter.requires_grad:
            continue
        value = getattr(parameter, "ds_tensor", parameter)
        found[name] = getattr(value, "_local_tensor", value).detach().clone()
        for scale in ("SCB", "absmax"):
            held = getattr(getattr(parameter, "quant_state", parameter), scale, None)
            if held is not None:
                found[f"{name} {scale}"] = held.clone()
    return found


def train(cell: Cell, name: str, folder: Path) -> dict[str, Any]:
    row = {"cell": dataclasses.astuple(cell), "model": name}
    try:
        ranks = fork(*prepared(config_of(cell, name, folder)), rank_main)
    except Exception as error:
        return row | {"error": f"{type(error).__name__}: {error}"}
    changed = sorted(set().union(*(rank["changed"] for rank in ranks)))
    names = sorted(set().union(*(rank["all"] for rank in ranks)))
    return row | ranks[0] | {"changed": changed, "all": names}


def main() -> None:
    out, *named = sys.argv[1:]
    wanted = [_trial(*name.split(",")) for name in named]
    be_ready_to_fork()
    with tempfile.TemporaryDirectory() as place, Path(out).open("w", encoding="utf-8") as file:
        folder = Path(place)
        rows = [{"text": "abc", "label": "ab"[number % 2]} for number in range(8)]
        (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        tasks = {trial_name(trial): partial(train, *trial, folder) for trial in wanted or trials()}
        for _, row in in_children(tasks):
            file.write(json.dumps(row) + "\n")
            file.flush()


def _trial(
    strategy: str, quantization: str, adapter: str, precision: str, name: str, stage: str = "sft"
) -> tuple[Cell, str]:
    return Cell(strategy, None if quantization == "none" else quantization, adapter, precision, stage), name


if __name__ == "__main__":
    main()
