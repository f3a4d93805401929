"""This module holds the table of torchtune's keys. A section's keys are joined to its name: `optimizer.lr`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from scaleup.config.convert import hugging_face as hf
from scaleup.config.convert.draft import (
    Draft,
    Left,
    NoCounterpart,
    Rule,
    Trainer,
    becomes,
    decides,
    is_off,
    missing,
    needless,
)
from scaleup.config.convert.rows import STATE, Source, put_sources, source
from scaleup.errors import ScaleupError

COMPONENT = "_component_"
WHOLE = ("dataset", "dataset_val")
"""Names the sections that are taken as one."""
SCHEDULES = {"get_cosine_schedule_with_warmup": "cosine", "get_linear_schedule_with_warmup": "linear"}
TRACKERS = {"WandBLogger": "wandb", "CometLogger": "comet_ml"}
MODULES = {"output_proj": "o_proj"}
MLP = ("gate_proj", "up_proj", "down_proj")
ALPACA = "alpaca: the columns become a chat by the tokenizer's template; torchtune writes 'Below is an instruction ...'"
HUB = {"alpaca_dataset": "tatsu-lab/alpaca", "alpaca_cleaned_dataset": "yahma/alpaca-cleaned"}
READ = frozenset(
    {COMPONENT, "source", "data_files", "split", "name", "column", "conversation_column", "conversation_style"}
    | {"column_map", "packed", "train_on_input"}
)
"""Names the keys of a dataset that are read here."""


def flatten(raw: Mapping[str, Any]) -> Mapping[str, Any]:
    """Returns a config by dotted keys, its references to other keys (`${output_dir}/logs`) resolved."""
    flat: dict[str, Any] = {}
    for key, value in raw.items():
        if isinstance(value, Mapping) and key not in WHOLE:
            flat |= {f"{key}.{inner}": each for inner, each in value.items()}
        else:
            flat[key] = value
    return {key: _resolved(value, flat) for key, value in flat.items()}


def _resolved(value: Any, flat: Mapping[str, Any]) -> Any:
    if not isinstance(value, str):
        return value
    if whole := re.fullmatch(r"\$\{([\w.]+)\}", value):
        return flat.get(whole[1], value)
    return re.sub(r"\$\{([\w.]+)\}", lambda found: str(flat.get(found[1], found[0])), value)


def begin(draft: Draft) -> None:
    given = draft.given
    for key in ("ppo_epochs", "grpo_samples", "quantizer._component_", "teacher_model._component_"):
        if key in given:
            remedy = "see docs/coming-from/torchtune.md for the stage that does it"
            raise ScaleupError.of(key, "is of a recipe that is not converted", remedy)
    loss = _last(given.get("loss._component_"))
    draft.key = "loss._component_"
    draft.put("stage", "dpo" if loss in ("DPOLoss", "RSOLoss") else "sft")
    if loss == "RSOLoss":
        draft.put("dpo.loss", "hinge")
    draft.key = "output_dir"
    draft.put("name", hf.name_of(given.get("output_dir", "converted")))
    draft.key = "model._component_"
    builder = _last(given.get("model._component_"))
    if builder.startswith(("lora_", "qlora_", "dora_", "qdora_")):
        draft.put("adapter.type", "lora")
        if "dora" in builder:
            draft.put("adapter.use_dora", True)
        if builder.startswith("q"):
            draft.put("quantization", "4bit", "nf4, quantized twice")


def defaults(given: Mapping[str, Any]) -> Mapping[str, Any]:
    found: dict[str, Any] = {"clip_grad_norm": 0, "optimizer.weight_decay": 0.01}
    if _last(given.get("optimizer._component_")) == "SGD":
        del found["optimizer.weight_decay"]
    return found


def finish(draft: Draft) -> None:
    hf.strategy(draft)
    draft.key = ""
    if "lr_scheduler._component_" not in draft.given:
        draft.put("train.lr_scheduler_type", "constant", "there is no schedule")
    if "data.max_length" not in draft.values:
        draft.put("data.max_length", 8192, "<- rows are not cut there: as many tokens as the longest has")
    if "adapter.type" not in draft.values:
        return
    targets = draft.values.get("adapter.target_modules")
    if isinstance(targets, list) and set(targets) >= {"q_proj", "k_proj", "v_proj", "o_proj", *MLP}:
        draft.put("adapter.target_modules", "all-linear")


def _last(component: Any) -> str:
    return str(component or "").rpartition(".")[2]


def attention(draft: Draft, value: Any) -> None:
    """Takes the matrices of attention that are adapted, by the names of Transformers."""
    found = [MODULES.get(name, name) for name in value]
    if draft.given.get("model.apply_lora_to_mlp"):
        found += MLP
    draft.put("adapter.target_modules", found)


def folder(draft: Draft, value: Any) -> None:
    draft.put("model.path", str(value), "<- a folder that Transformers loads, or a hub's name")


def tokenizer(draft: Draft, value: Any) -> None:
    where = str(draft.given.get("checkpointer.checkpoint_dir", ""))
    if where and Path(str(value)).is_relative_to(where):
        draft.leave("is the model's own", matters=False)
    else:
        raise NoCounterpart("model.tokenizer names a folder that tokenizer.save_pretrained wrote")


def component(known: Mapping[str, str], key: str) -> Rule:
    """Returns the rule of a component of which some have a counterpart, by the last part of their names."""

    def take(draft: Draft, value: Any) -> None:
        if _last(value) not in known:
            raise NoCounterpart(f"converted are {', '.join(known)}")
        draft.put(key, known[_last(value)])

    return decides(take, key)


def logger(draft: Draft, value: Any) -> None:
    if _last(value) in TRACKERS:
        draft.put("report_to", [TRACKERS[_last(value)]])
    else:
        draft.leave("metrics.jsonl and TensorBoard are always written", matters=False)


def precision(draft: Draft, value: Any) -> None:
    known = {"bf16": "bf16", "fp32": "no", "fp16": "fp16"}
    draft.put("mixed_precision", known[value], "weights are bf16 there" if value == "bf16" else "")


def steps_an_epoch(draft: Draft, value: Any) -> None:
    steps = int(value) * int(draft.given.get("epochs", 1))
    draft.put("train.max_steps", steps, f"{value} an epoch; each epoch began anew there")


def epochs(draft: Draft, value: Any) -> None:
    if draft.given.get("max_steps_per_epoch") is None:
        draft.put("train.num_train_epochs", hf.number(value))


def offload(draft: Draft, value: Any) -> None:
    if is_off(value):
        draft.off.append(draft.key)
    else:
        draft.put("parallel.strategy", "zero3", "FSDP there, which does not offload here")
        draft.put("parallel.offload_parameters", True)
        draft.put("parallel.offload_optimizer", True)


def dataset(draft: Draft, value: Any) -> None:
    entries = list(value) if isinstance(value, list) else [value]
    splits = {"train": _sources(draft, entries)}
    beside = draft.given.get("dataset_val")
    if not is_off(beside) and not is_off(draft.given.get("run_val_every_n_steps")):
        splits["validation"] = _sources(draft, beside if isinstance(beside, list) else [beside])
    put_sources(draft, splits)
    notes = [note for entry in entries if (note := _format(entry)[1])]
    if notes:
        draft.notes["data.train"] = notes[0]
    if any(entry.get("packed") for entry in entries):
        draft.put("data.packing", True)
    if any(entry.get("train_on_input", _last(entry.get(COMPONENT)) in HUB) for entry in entries):
        draft.put("data.completion_only_loss", False)
        draft.put("data.train_on", "all")


def held_out(draft: Draft, value: Any) -> None:
    if is_off(draft.given.get("run_val_every_n_steps")):
        draft.leave("nothing is validated there without run_val_every_n_steps", matters=False)


def _sources(draft: Draft, entries: list[Any]) -> list[Source]:
    found: list[Source] = []
    for entry in entries:
        at = entry.get("source") or HUB.get(_last(entry.get(COMPONENT))) or _last(entry.get(COMPONENT))
        form = _format(entry)[0]
        found += [{**each, **form} for each in source(str(at), entry.get("data_files"), entry.get("split"))]
        draft.left += [
            Left(f"{draft.key}.{key}", entry[key], "see docs/data.md for what a source may say")
            for key in sorted(set(entry) - READ)
            if not is_off(entry[key])
        ]
    return found


def _format(entry: Mapping[str, Any]) -> tuple[Source, str]:
    """Returns the row format of a dataset, and what is to be said of it."""
    kind, columns = _last(entry.get(COMPONENT)), entry.get("column_map") or {}
    if kind in HUB:
        renamed = {ours: column for ours, column in columns.items() if ours != column}
        return {"template": "alpaca", **({"columns": renamed} if renamed else {})}, ALPACA
    if kind == "chat_dataset":
        return {"messages": str(entry["conversation_column"])}, ""
    if kind == "instruct_dataset":
        asked, answer = columns.get("input", "input"), columns.get("output", "output")
        return {
            "prompt": "{" + asked + "}",
            "completion": "{" + answer + "}",
        }, "<- messages of a chat there, texts here"
    if kind == "text_completion_dataset":
        return {"text": "{" + str(entry.get("column") or "text") + "}"}, ""
    if kind == "preference_dataset":
        return {name: "{" + columns.get(name, name) + "}" for name in ("chosen", "rejected")}, ""
    return {}, f"{STATE} ({kind})"


RULES: dict[str, Rule] = {
    "output_dir": decides(lambda draft, value: None, "name"),
    "checkpointer.checkpoint_dir": decides(folder, "model.path"),
    "tokenizer.path": decides(tokenizer, "model.tokenizer"),
    "tokenizer.max_seq_len": becomes("data.max_length", int),
    "model._component_": decides(lambda draft, value: None, "adapter.type", "adapter.use_dora", "quantization"),
    "model.lora_attn_modules": decides(attention, "adapter.target_modules"),
    "model.apply_lora_to_mlp": decides(lambda draft, value: None, "adapter.target_modules"),
    "model.lora_rank": becomes("adapter.r", int),
    "model.lora_alpha": becomes("adapter.lora_alpha", hf.number),
    "model.lora_dropout": becomes("adapter.lora_dropout", hf.number),
    "model.use_dora": becomes("adapter.use_dora", bool),
    "dataset": decides(dataset, "data.train", "data.packing", "data.completion_only_loss"),
    "dataset_val": decides(held_out, "data.validation"),
    "run_val_every_n_steps": becomes("train.eval_steps", hf.whole),
    "shuffle": becomes("data.shuffle", bool),
    "seed": becomes("train.seed", int),
    "batch_size": becomes("train.per_device_train_batch_size", int),
    "batch_size_val": becomes("train.per_device_eval_batch_size", int),
    "gradient_accumulation_steps": becomes("train.gradient_accumulation_steps", int),
    "epochs": decides(epochs, "train.num_train_epochs"),
    "max_steps_per_epoch": decides(steps_an_epoch, "train.max_steps"),
    "optimizer._component_": decides(hf.optimizer, "train.optimizer"),
    "optimizer.lr": becomes("train.learning_rate", hf.number),
    "optimizer.weight_decay": becomes("train.weight_decay", hf.number),
    "lr_scheduler._component_": component(SCHEDULES, "train.lr_scheduler_type"),
    "lr_scheduler.num_warmup_steps": becomes("train.warmup_steps", int),
    "clip_grad_norm": becomes("train.max_grad_norm", hf.number),
    "log_every_n_steps": becomes("train.logging_steps", hf.whole),
    "save_every_n_steps": becomes("train.save_steps", hf.whole),
    "loss._component_": decides(lambda draft, value: None, "stage"),
    "loss.beta": becomes("dpo.beta", hf.number),
    "dtype": decides(precision, "mixed_precision"),
    "enable_activation_checkpointing": becomes("gradient_checkpointing", bool),
    "fsdp_cpu_offload": decides(offload, "parallel.strategy", "parallel.offload_parameters"),
    "metric_logger._component_": decides(logger, "report_to"),
    "model.apply_lora_to_output": missing("adapter.target_modules may name lm_head"),
    "loss.label_smoothing": missing("dpo.label_smoothing is of dpo.loss: robust, simpo and cpo"),
    "tensor_parallel_dim": missing("a layer is on one device, or sharded by zero3 and fsdp2"),
    "optimizer_in_bwd": missing("gradients are kept until the step, which clips them"),
    "checkpointer.recipe_checkpoint": needless("scaleup run FILE --resume"),
    "resume_from_checkpoint": needless("scaleup run FILE --resume"),
    **dict.fromkeys(
        ("checkpointer._component_", "checkpointer.checkpoint_files", "checkpointer.model_type"),
        needless("the model's own files say it"),
    ),
    **dict.fromkeys(("tokenizer._component_",), needless("the model's own files say it")),
    **dict.fromkeys(("checkpointer.output_dir", "metric_logger.log_dir", "log_level"), needless("runs/NAME has all")),
    "save_adapter_weights_only": needless("it is always so"),
    **dict.fromkeys(
        ("device", "compile", "optimizer.fused", "enable_activation_offloading", "log_peak_memory_stats"),
        needless(hf.OF_THE_MACHINE),
    ),
    **dict.fromkeys(("custom_sharded_layers", "fsdp_reshard_after_forward"), needless(hf.OF_THE_MACHINE)),
    **{f"profiler.{key}": needless("nothing is profiled") for key in ("_component_", "enabled", "output_dir")},
    **{
        f"profiler.{key}": needless("nothing is profiled")
        for key in ("cpu", "cuda", "profile_memory", "with_stack", "record_shapes", "with_flops")
    },
    **{
        f"profiler.{key}": needless("nothing is profiled")
        for key in ("wait_steps", "warmup_steps", "active_steps", "num_cycles")
    },
}

TORCHTUNE = Trainer(
    name="torchtune",
    called="torchtune",
    page="torchtune",
    signature=frozenset({"checkpointer"}),
    unless=frozenset(),
    rules=RULES,
    begin=begin,
    finish=finish,
    defaults=defaults,
    flatten=flatten,
)
