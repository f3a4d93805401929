"""This module holds the rules of keys that several trainers took over from Transformers' TrainingArguments and PEFT,
under whatever names."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from scaleup.config.convert.draft import Draft, NoCounterpart, Rule, becomes, decides, is_off, missing, needless

ADAMW = frozenset({"adamw", "adamw_torch", "adamw_torch_fused", "adamw_hf", "adamw_apex_fused", "torch.optim.AdamW"})
SCHEDULERS = frozenset({"linear", "cosine", "cosine_with_restarts", "polynomial", "constant", "constant_with_warmup"})
TRACKERS = frozenset({"wandb", "comet_ml", "mlflow", "clearml", "dvclive", "swanlab", "trackio"})
BY_EPOCH = "`scaleup plan` says how many steps an epoch has"


def number(value: Any) -> float:
    """Returns a number, also one that YAML reads as text (2e-5)."""
    return float(value)


def whole(value: Any) -> int:
    """Returns a number of steps or rows. Raises NoCounterpart for a share of the whole run."""
    if float(value) != int(float(value)) or int(float(value)) < 1:
        raise NoCounterpart(f"give a whole number of steps: {BY_EPOCH}")
    return int(float(value))


def optimizer(draft: Draft, value: Any) -> None:
    """Takes AdamW by its many names, and SGD."""
    name = str(value)
    if name in ADAMW:
        draft.put("train.optimizer", "adamw")
    elif name == "sgd" or name.endswith(".SGD"):
        draft.put("train.optimizer", "sgd")
    elif re.search(r"adamw", name, re.IGNORECASE) and re.search(r"8bit|paged|_8|4bit", name, re.IGNORECASE):
        draft.put("train.optimizer", "adamw", f"{name} there: states are float32 here")
    else:
        raise NoCounterpart("AdamW and SGD are all there are: AdamW runs in its place, and wants another learning rate")


def scheduler(value: Any) -> str:
    if value not in SCHEDULERS and value != "inverse_sqrt":
        raise NoCounterpart(f"use one of {', '.join(sorted(SCHEDULERS))}")
    return str(value)


def precision(name: str) -> Rule:
    """Returns the rule of a switch for bf16 or fp16."""

    def take(draft: Draft, value: Any) -> None:
        if is_off(value):
            if draft.values.get("mixed_precision") is None:
                draft.put("mixed_precision", "no")
        else:
            note = "bf16 where the GPU has it, there" if value == "auto" else ""
            draft.put("mixed_precision", name, note)

    return decides(take, "mixed_precision")


def trackers(draft: Draft, value: Any) -> None:
    """Takes what Transformers calls `report_to`. TensorBoard is always written here."""
    names = [value] if isinstance(value, str) else list(value)
    known = [name for name in names if name in TRACKERS]
    if known:
        draft.put("report_to", known)
    else:
        draft.off.append(draft.key)
    if others := [name for name in names if name not in TRACKERS and name not in ("none", "tensorboard")]:
        raise NoCounterpart(f"{', '.join(map(str, others))}: no tracker of that name is known here")


def tracker(name: str) -> Rule:
    """Returns the rule of a key that switches a tracker on."""

    def take(draft: Draft, value: Any) -> None:
        if is_off(value):
            draft.off.append(draft.key)
        else:
            draft.put("report_to", sorted({*draft.values.get("report_to", []), name}), "its project: see the end")
            draft.leave("is told in the tracker's environment variables", matters=False)

    return decides(take, "report_to")


def bits(name: str) -> Rule:
    """Returns the rule of a switch for a quantized base."""

    def take(draft: Draft, value: Any) -> None:
        if is_off(value):
            draft.off.append(draft.key)
        else:
            draft.put("quantization", name, "nf4, quantized twice" if name == "4bit" else "")

    return decides(take, "quantization")


def held_out(draft: Draft, value: Any) -> None:
    """Takes the share of the rows that is held out for validation."""
    if is_off(value):
        draft.off.append(draft.key)
    elif 0 < float(value) < 1:
        draft.put("data.validation_fraction", float(value))
    else:
        raise NoCounterpart("is a number of rows: give data.validation_fraction, or a file as data.validation")


def by_strategy(key: str) -> Rule:
    """Returns the rule of `eval_strategy` and `save_strategy`, which say what `eval_steps` and `save_steps` count."""

    def take(draft: Draft, value: Any) -> None:
        if value == "steps":
            draft.leave(f"{key} says it", matters=False)
        elif is_off(value):
            draft.off.append(draft.key)
        else:
            raise NoCounterpart(f"set {key}: {BY_EPOCH}")

    return decides(take, key)


def best_by(value: Any) -> str:
    """Returns the figure of an evaluation, which Transformers calls `eval_loss` and we `loss`."""
    return str(value).removeprefix("eval_")


def modules(draft: Draft, value: Any) -> None:
    """Takes names of modules, of which `all` and `all-linear` mean every linear layer."""
    if is_off(value):
        draft.off.append(draft.key)
        return
    names = [name.strip() for name in value.split(",")] if isinstance(value, str) else list(value)
    everything = bool({"all", "all-linear"}.intersection(names))
    draft.put("adapter.target_modules", "all-linear" if everything else names)


def names(value: Any) -> list[str]:
    return [each.strip() for each in value.split(",")] if isinstance(value, str) else list(value)


TARGETS = decides(modules, "adapter.target_modules")
DEEPSPEED_STAGE = re.compile(r"(?:zero|stage|z)[-_]?([0123])", re.IGNORECASE)


def deepspeed(draft: Draft, value: Any) -> None:
    """Takes DeepSpeed's config: from the file where it is here, else by the file's name."""
    config: Mapping[str, Any] = value if isinstance(value, Mapping) else {}
    if isinstance(value, str) and Path(value).is_file():
        config = json.loads(Path(value).read_text(encoding="utf-8"))
    zero, note = config.get("zero_optimization", {}), f"of {value}" if isinstance(value, str) else ""
    stage, by_name = zero.get("stage"), str(value) if isinstance(value, str) and not config else ""
    if by_name:
        found = DEEPSPEED_STAGE.search(Path(by_name).name)
        stage, note = (int(found[1]) if found else None), f"<- by the name of {value}, which is not here"
    if stage is None:
        raise NoCounterpart("holds no ZeRO stage: set parallel.strategy: zero1, zero2 or zero3")
    draft.put("parallel.strategy", "ddp" if int(stage) == 0 else f"zero{stage}", note)
    offloads = "offload" in by_name
    for key, ours in (("offload_optimizer", "optimizer"), ("offload_param", "parameters")):
        if zero.get(key, {}).get("device") in ("cpu", "nvme") or (
            offloads and (int(stage) == 3 or ours != "parameters")
        ):
            draft.put(f"parallel.offload_{ours}", True, note)
    if config:
        draft.leave("its ZeRO stage and offloading are taken; the rest is set by the run itself", matters=False)


def fsdp(draft: Draft, value: Any) -> None:
    """Takes FSDP, of either version, as FSDP2."""
    words = value.split() if isinstance(value, str) else list(value)
    if not words or words == ["no_shard"]:
        draft.off.append(draft.key)
        return
    draft.put("parallel.strategy", "fsdp2", " ".join(map(str, words)))
    if "offload" in words:
        raise NoCounterpart("offload: fsdp2 keeps all on the devices; zero3 with parallel.offload_parameters does it")


def fsdp_config(draft: Draft, value: Any) -> None:
    """Takes the details of FSDP: there is nothing to set here but that parameters stay on the device."""
    options = {str(key).removeprefix("fsdp_"): each for key, each in value.items()}
    draft.put("parallel.strategy", "fsdp2")
    if not is_off(options.get("offload_params")):
        raise NoCounterpart(
            "offload_params: fsdp2 keeps all on the devices; zero3 with parallel.offload_parameters does"
        )
    draft.leave("layers are wrapped, and states saved, in one way", matters=False)


def steps_or_epochs(draft: Draft) -> None:
    """Takes out the epochs where a number of steps says when the run ends, and the warmup's share where its steps are
    given."""
    for first, second in (("train.max_steps", "train.num_train_epochs"), ("train.warmup_steps", "train.warmup_ratio")):
        if first in draft.values and second in draft.values:
            draft.drop(second, f"{first} wins")


def strategy(draft: Draft) -> None:
    """Sets the strategy that is left open, and another where the one that was taken holds no quantized base."""
    bits = draft.values.get("quantization")
    if "parallel.strategy" not in draft.values:
        draft.put("parallel.strategy", "auto", "ddp there; auto: what communicates least and fits")
    elif draft.values["parallel.strategy"] == "fsdp2" and bits:
        sharded = "zero3" if bits == "4bit" and draft.values["stage"] in ("sft", "dpo") else "zero2"
        draft.put("parallel.strategy", sharded, "<- fsdp2 shards no quantized base")
    if "parallel.num_processes" not in draft.values:
        draft.put("parallel.num_processes", 1, "<- as many as there: a step is rows x accumulation x processes")


def max_steps(draft: Draft, value: Any) -> None:
    """Takes a number of steps; 0 and less mean that epochs count."""
    if float(value) > 0:
        draft.put("train.max_steps", int(value))
    else:
        draft.off.append(draft.key)


def warmup(draft: Draft, value: Any) -> None:
    """Takes a number of steps or, below 1, a share of them, as Transformers 5 does."""
    if 0 < float(value) < 1:
        draft.put("train.warmup_ratio", float(value))
    else:
        draft.put("train.warmup_steps", int(value))


def everything(draft: Draft, value: Any) -> None:
    """Takes a switch by which questions are learned too."""
    if is_off(value):
        draft.off.append(draft.key)
    else:
        draft.put("data.completion_only_loss", False)
        draft.put("data.train_on", "all")


def name_of(path: Any) -> str:
    """Returns a run's name from the folder that the other trainer writes to."""
    last = re.sub(r"[^A-Za-z0-9._-]+", "-", Path(str(path)).name).lstrip("-._")
    return last[:100] or "converted"


TRAINING: dict[str, Rule] = {
    "fsdp": decides(fsdp, "parallel.strategy"),
    "fsdp_config": decides(fsdp_config, "parallel.strategy"),
    "deepspeed": decides(deepspeed, "parallel.strategy", "parallel.offload_optimizer", "parallel.offload_parameters"),
    "optim_args": missing("train.adam_beta1, adam_beta2, adam_epsilon and momentum are all there are"),
    "lr_scheduler_kwargs": missing("schedules have Transformers' own defaults"),
    "neftune_noise_alpha": missing("no noise is added to embeddings"),
    "auto_find_batch_size": missing("`scaleup plan --fit` finds the sizes that fit, before anything runs"),
    "max_steps": decides(max_steps, "train.max_steps"),
    "warmup_steps": decides(warmup, "train.warmup_steps"),
}
"""Holds the rules of keys that have Transformers' names in every trainer."""
OF_THE_MACHINE = "changes no result; scaleup plan and doctor say what the machine needs"
NUMBERS = ("weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon", "max_grad_norm", "learning_rate", "warmup_ratio")
COUNTS = (
    "per_device_train_batch_size",
    "per_device_eval_batch_size",
    "gradient_accumulation_steps",
    "logging_steps",
    "eval_steps",
    "save_steps",
    "save_total_limit",
)
ARGUMENTS: dict[str, Rule] = {
    **TRAINING,
    **{key: becomes(f"train.{key}", number) for key in NUMBERS},
    **{key: becomes(f"train.{key}", whole) for key in COUNTS},
    "num_train_epochs": becomes("train.num_train_epochs", number),
    "lr_scheduler_type": becomes("train.lr_scheduler_type", scheduler),
    "optim": decides(optimizer, "train.optimizer"),
    "eval_strategy": by_strategy("train.eval_steps"),
    "save_strategy": by_strategy("train.save_steps"),
    "load_best_model_at_end": becomes("train.load_best_model_at_end", bool),
    "metric_for_best_model": becomes("train.metric_for_best_model", best_by),
    "greater_is_better": becomes("train.greater_is_better", bool),
    "group_by_length": becomes("train.group_by_length", bool),
    "seed": becomes("train.seed", int),
    "bf16": precision("bf16"),
    "fp16": precision("fp16"),
    "report_to": decides(trackers, "report_to"),
    "model_name_or_path": becomes("model.path", str),
    "model_revision": becomes("model.revision", str),
    "trust_remote_code": becomes("model.trust_remote_code", bool),
    "use_rslora": becomes("adapter.use_rslora", bool),
    "use_dora": becomes("adapter.use_dora", bool),
    **dict.fromkeys(
        ("dataloader_num_workers", "ddp_timeout", "low_cpu_mem_usage", "tf32", "torch_compile", "use_liger_kernel"),
        needless(OF_THE_MACHINE),
    ),
    "do_train": needless("scaleup run trains"),
    "do_eval": needless("rows of data.validation are measured at the end, and every train.eval_steps"),
    "overwrite_output_dir": needless("a finished run is not overwritten: give another name"),
    "resume_from_checkpoint": needless("scaleup run FILE --resume"),
    "save_only_model": needless("checkpoints can be gone on from; the result is the model alone"),
    "run_name": needless("name says it"),
    "logging_first_step": needless("the first step is logged"),
    **dict.fromkeys(
        ("hf_hub_token", "hub_token", "push_to_hub", "hub_model_id", "hub_strategy"),
        needless("nothing is uploaded: push the folder of scaleup export"),
    ),
}
"""Holds the rules of Transformers' TrainingArguments, and of what stands beside them by its name there."""
