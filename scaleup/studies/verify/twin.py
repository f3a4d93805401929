"""A config goes in; that of its tiny twin comes out: the same family of model, adapter, quantization, stage, templates
and tokenizer, on the first rows, for a few steps. The twin's model is made by a process of the data plane."""

from __future__ import annotations

import copy
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from scaleup.children import asked
from scaleup.config.load import Raw, put
from scaleup.config.run import RunConfig
from scaleup.config.stages.base import SupervisedConfig
from scaleup.errors import Problem, ScaleupError
from scaleup.plan.extras import check_data_plane
from scaleup.plan.model_path import adapter_folder

STAGES = ("sft", "dpo")
"""Names the stages that have twins."""
NUM_ROWS, LONGEST, NUM_STEPS = 48, 512, 4
"""Bound what a twin reads of each source and of a row, and say how many steps it takes."""
GLOBAL_BATCH = 8
LEARNING_RATES = {"lora": 0.3, "prompt_tuning": 1.0, "adalora": 3.0}
"""Are those of plain SGD, with which a twin moves far in few steps, by the adapter's type; 0.1 for anything else."""
COMMAND = [sys.executable, "-m", "scaleup.describe.twin"]
UNREAD = frozenset({"validation", "test", "retain", "few_shot", "validation_fraction"})
"""Names the keys of rows that a twin leaves alone: nothing is measured on held-out ones."""


def is_by_rows(config: SupervisedConfig) -> bool:
    """Returns whether a micro-batch is so many rows in the order in which they are drawn."""
    return not (config.data.packing or config.train.tokens_per_device or config.train.group_by_length)


def twin_problems(config: RunConfig) -> Iterator[Problem]:
    """Yields what has no twin."""
    if config.stage not in STAGES:
        yield Problem("stage", f"{config.stage} has no twins yet", f"verify a config of {', '.join(STAGES)}")
    adapter = getattr(config, "adapter", None)
    places = {"model.path": config.model.path, "adapter.path": getattr(adapter, "path", None)}
    for key, path in places.items():
        if path and (key == "adapter.path" or adapter_folder(path) is not None):
            what = "is an adapter that is trained further, which has no twin yet"
            yield Problem(key, what, "verify the config that the adapter was trained with")


def twin_of(config: SupervisedConfig, model: Path, place: Path, is_on_cpu: bool) -> Raw:
    """Returns the config of the twin that all others are compared with: one process, all rows of a step at once. Its
    model lies in the folder `model`, its runs in `place`."""
    raw: Raw = config.model_dump(mode="json", exclude_unset=True)
    for section in ("cluster", "evaluation", "generation"):
        raw.pop(section, None)
    adapter = raw.get("adapter") or {}
    if "lora_dropout" in adapter:
        adapter["lora_dropout"] = 0.0
    if adapter.get("type") == "adalora":
        adapter |= {"tinit": 1, "tfinal": 1, "deltaT": 1}
    changes: dict[str, Any] = {
        "runs_dir": str(place),
        "model.path": str(model),
        "model.tokenizer": None,
        "model.revision": None,
        "mixed_precision": "no",
        "gradient_checkpointing": False,
        "report_to": [],
        "data.max_length": min(config.data.max_length, LONGEST),
        "parallel": {"strategy": "single", "num_processes": 1, "device": "cpu" if is_on_cpu else "auto"},
        "train": _train(config, adapter.get("type", "")),
    }
    for key, value in changes.items():
        put(raw, key, value)
    data = raw["data"]
    data |= dict.fromkeys(UNREAD & data.keys())
    for split in ("train", "regularization"):
        for source in data.get(split) or []:
            source["max_rows"] = min(source.get("max_rows") or NUM_ROWS, NUM_ROWS)
    return raw


def _train(config: SupervisedConfig, adapter: str) -> dict[str, Any]:
    """Returns the training section of a twin: SGD without momentum, as Adam would hide a wrong scale of a gradient."""
    train = config.train
    split = split_of(1, GLOBAL_BATCH, 1) if is_by_rows(config) else split_of(1, GLOBAL_BATCH // 4, 2)
    return {
        "max_steps": NUM_STEPS,
        "optimizer": "sgd",
        "learning_rate": LEARNING_RATES.get(adapter, 0.1),
        "lr_scheduler_type": "constant",
        "weight_decay": train.weight_decay,
        "max_grad_norm": train.max_grad_norm,
        "seed": train.seed,
        "async_save": train.async_save,
        "group_by_length": train.group_by_length,
        "tokens_per_device": train.tokens_per_device,
        **{key.removeprefix("train."): value for key, value in split.items() if key.startswith("train.")},
        **({"per_device_train_batch_size": None} if train.tokens_per_device else {}),
    }


def split_of(num_processes: int, micro_batch: int, accumulation: int) -> dict[str, Any]:
    """Returns the keys that say how a step is split."""
    return {
        "parallel.num_processes": num_processes,
        "train.per_device_train_batch_size": micro_batch,
        "train.gradient_accumulation_steps": accumulation,
    }


def changed(twin: Raw, name: str, changes: Mapping[str, Any]) -> Raw:
    """Returns a twin's run by its name as its file has it, with dotted keys changed."""
    raw = copy.deepcopy(twin)
    for key, value in {"name": name, **changes}.items():
        put(raw, key, value)
    return raw


def make_models(config: RunConfig, folder: Path) -> Path:
    """Makes the model of a twin. Returns its folder. Raises ScaleupError for one that cannot be made small."""
    check_data_plane()
    place = folder / "model"
    question = {"models": {"model": {"model": config.model.model_dump(mode="json"), "folder": str(place)}}}
    done, stderr = asked(COMMAND, json.dumps(question))
    if done.returncode or not done.stdout.strip():
        what = f"its twin could not be made: {stderr.cause(done.returncode)}"
        raise ScaleupError.of("model.path", what, "see what `scaleup doctor` says of this machine")
    if problems := json.loads(done.stdout.strip().splitlines()[-1])["problems"]:
        raise ScaleupError([Problem(**problem) for problem in problems])
    return place
