"""A config goes in; that of its tiny twin comes out: the same families of models, adapter, quantization, stage,
templates and tokenizers, on the first rows, for a few steps. The twin's models are made by a process of the data
plane."""

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
from scaleup.config.schema import ModelConfig
from scaleup.config.stages import NAMES
from scaleup.config.stages.base import TrainingConfig
from scaleup.errors import Problem, ScaleupError
from scaleup.plan.extras import check_data_plane
from scaleup.plan.facts import ModelRequest
from scaleup.plan.model_path import adapter_folder, model_path_problems
from scaleup.plan.stages import planner_named, planner_of
from scaleup.plan.twins import GLOBAL_BATCH, LONGEST, NUM_ROWS, NUM_STEPS, learning_rate

COMMAND = [sys.executable, "-m", "scaleup.describe.twin"]
UNREAD = frozenset({"validation", "test", "retain", "few_shot", "validation_fraction"})
"""Names the keys of rows that a twin leaves alone: nothing is measured on held-out ones."""
WITH_DROPOUT = "model-with-dropout"
"""Names the twin of the model whose dropout is on: that of runs which are to draw the same masks."""
DROPOUT, NUM_HELD_OUT = 0.1, 16
TAKEN_OVER = ("weight_decay", "max_grad_norm", "seed", "async_save", "group_by_length", "tokens_per_device")
"""Names the keys of the training section that a twin has as its config does."""


def is_by_rows(config: TrainingConfig) -> bool:
    """Returns whether a micro-batch is so many rows in the order in which they are drawn."""
    by_length = (getattr(config.train, key, None) for key in ("tokens_per_device", "group_by_length"))
    return not (config.data.packing or any(by_length))


def twin_problems(config: RunConfig) -> Iterator[Problem]:
    """Yields what has no twin, and models that are not there."""
    if not isinstance(config, TrainingConfig) or planner_of(config).twin(config) is None:
        stages = ", ".join(name for name in NAMES if planner_named(name).trains)
        yield Problem("stage", f"{config.stage} has no twins", f"verify a config of {stages}")
        yield from model_path_problems(config.model, "model", needs_weights=False, is_trained=True)
        return
    places = {"model.path": config.model.path, "adapter.path": getattr(config.adapter, "path", None)}
    for key, path in places.items():
        if path and (key == "adapter.path" or adapter_folder(path) is not None):
            what = "is an adapter that is trained further, which has no twin"
            yield Problem(key, what, "verify the config that the adapter was trained with")
    for where, model in models_of(config).items():
        yield from model_path_problems(model, where, needs_weights=False, is_trained=where == "model")


def models_of(config: RunConfig) -> dict[str, ModelRequest]:
    """Returns the models of a run by config key, but for those that only measure it."""
    return planner_of(config).models(config.model_copy(update={"evaluation": None}))


def twin_of(config: TrainingConfig, models: Mapping[str, Path], place: Path, is_on_cpu: bool) -> Raw:
    """Returns the config of the twin that all others are compared with: one process, all rows of a step at once. Its
    models lie in the folders `models`, by config key, its runs in `place`."""
    raw: Raw = config.model_dump(mode="json", exclude_unset=True)
    for section in ("cluster", "evaluation", "generation", "generator"):
        raw.pop(section, None)
    changes: dict[str, Any] = {
        "runs_dir": str(place),
        "mixed_precision": "no",
        "gradient_checkpointing": False,
        "report_to": [],
        "data.max_length": min(config.data.max_length, LONGEST),
        "parallel": {"strategy": "single", "num_processes": 1, "device": "cpu" if is_on_cpu else "auto"},
        "train": _train(config),
        **_adapter_changes(config),
        **(planner_of(config).twin(config) or {}),
    }
    for where, folder in models.items():
        changes |= {f"{where}.path": str(folder), f"{where}.tokenizer": None, f"{where}.revision": None}
        changes[f"{where}.attn_implementation"] = None  # flash attention has no float32
    if is_on_cpu and raw.get("use_liger_kernel"):
        changes["use_liger_kernel"] = False
    for key, value in changes.items():
        put(raw, key, value)
    data = raw["data"]
    paths = {source["path"] for source in data.get("train") or []}
    splits = (data.get("validation"), data.get("test"))
    held_out = next((split for split in splits if split and split[0]["path"] not in paths), None)
    data |= dict.fromkeys(UNREAD & data.keys())
    if held_out and planner_of(config).has_plain_loss:  # what the trained model says of them, the saved one has to say
        data["validation"] = [{**held_out[0], "max_rows": NUM_HELD_OUT}]
    for split in ("train", "regularization", "supervised"):
        for source in data.get(split) or []:
            source["max_rows"] = min(source.get("max_rows") or NUM_ROWS, NUM_ROWS)
    return raw


def _adapter_changes(config: TrainingConfig) -> dict[str, Any]:
    """Returns an adapter's settings that depend on how long a run is, or draw masks."""
    kind = getattr(config.adapter, "type", "")
    changes: dict[str, Any] = {"adapter.lora_dropout": 0.0} if hasattr(config.adapter, "lora_dropout") else {}
    return changes | ({f"adapter.{key}": 1 for key in ("tinit", "tfinal", "deltaT")} if kind == "adalora" else {})


def _train(config: TrainingConfig) -> dict[str, Any]:
    """Returns the training section of a twin: SGD without momentum, as Adam would hide a wrong scale of a gradient."""
    train = config.train
    split = split_of(config, 1, GLOBAL_BATCH, 1) if is_by_rows(config) else split_of(config, 1, GLOBAL_BATCH // 4, 2)
    by_tokens = getattr(train, "tokens_per_device", None) is not None
    wanted = {
        "max_steps": NUM_STEPS,
        "optimizer": "sgd",
        "learning_rate": learning_rate(config.adapter),
        "lr_scheduler_type": "constant",
        **{key: getattr(train, key, None) for key in TAKEN_OVER},
        **{key.removeprefix("train."): value for key, value in split.items() if key.startswith("train.")},
        **({"per_device_train_batch_size": None} if by_tokens else {}),
    }
    return {key: value for key, value in wanted.items() if key in type(train).model_fields}


def split_of(config: TrainingConfig, num_processes: int, micro_batch: int, accumulation: int) -> dict[str, Any]:
    """Returns the keys that say how a step is split. By tokens there is no number of rows in it; how many micro-batches
    a rollout has follows from its size."""
    split = {
        "parallel.num_processes": num_processes,
        "train.per_device_train_batch_size": micro_batch,
        "train.gradient_accumulation_steps": accumulation,
    }
    if config.plans_its_batch:
        del split["train.gradient_accumulation_steps"]
    elif getattr(config.train, "tokens_per_device", None) is not None:
        del split["train.per_device_train_batch_size"]
    return split


def with_dropout(twin: Raw) -> dict[str, Any]:
    """Returns what a run of a twin has otherwise that drops out: its model, and a probability of LoRA's."""
    model = Path(twin["model"]["path"]).parent / WITH_DROPOUT
    changes: dict[str, Any] = {"model.path": str(model)} if model.is_dir() else {}  # a policy's has it anyhow
    return changes | ({"adapter.lora_dropout": DROPOUT} if "lora_dropout" in (twin.get("adapter") or {}) else {})


def changed(twin: Raw, name: str, changes: Mapping[str, Any]) -> Raw:
    """Returns a twin's run by its name as its file has it, with dotted keys changed."""
    raw = copy.deepcopy(twin)
    for key, value in {"name": name, **changes}.items():
        put(raw, key, value)
    return raw


def make_models(config: TrainingConfig, folder: Path) -> dict[str, Path]:
    """Makes the models of a twin, and that with dropout, within a folder. Returns their folders by config key. Raises
    ScaleupError for one that cannot be made small."""
    check_data_plane()
    models = models_of(config)
    wanted = {where: (model, 0.0) for where, model in models.items()} | {WITH_DROPOUT: (models["model"], DROPOUT)}
    if config.plans_its_batch:  # a policy, which switches it off: what a twin measures shows whether it does
        wanted["model"] = wanted.pop(WITH_DROPOUT)
    fields = set(ModelConfig.model_fields)
    question = [
        {
            "where": "model" if where == WITH_DROPOUT else where,
            "model": model.model_dump(mode="json", include=fields),
            "folder": str(folder / where),
            "dropout": dropout,
        }
        for where, (model, dropout) in wanted.items()
    ]
    done, stderr = asked(COMMAND, json.dumps({"models": question}))
    if done.returncode or not done.stdout.strip():
        what = f"its twin could not be made: {stderr.cause(done.returncode)}"
        raise ScaleupError.of("model.path", what, "see what `scaleup doctor` says of this machine")
    if problems := json.loads(done.stdout.strip().splitlines()[-1])["problems"]:
        raise ScaleupError([Problem(**problem) for problem in problems])
    return {where: folder / where for where in models}
