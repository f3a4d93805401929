"""This module holds the table of LLaMA-Factory's keys, and reads its dataset_info.json where that is here."""

from __future__ import annotations

import json
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
from scaleup.config.convert.rows import Source, is_hub, put_sources
from scaleup.errors import ScaleupError

STAGES = {"sft": "sft", "pt": "sft", "rm": "reward", "dpo": "dpo", "kto": "dpo"}
LOSSES = {"sigmoid": "dpo", "hinge": "hinge", "ipo": "ipo", "orpo": "orpo", "simpo": "simpo"}
INFO = "dataset_info.json"


def begin(draft: Draft) -> None:
    theirs = draft.given.get("stage")
    if theirs not in STAGES:
        remedy = "start with scaleup init ppo, and see docs/coming-from/llama-factory.md"
        raise ScaleupError.of("stage", f"{theirs!r} is not converted", remedy)
    if draft.given["finetuning_type"] == "oft":
        raise ScaleupError.of("finetuning_type", "'oft' is not converted", "use lora, or full")
    draft.key = "stage"
    draft.put("stage", STAGES[theirs])
    if theirs == "kto":
        draft.put("dpo.loss", "kto")
    draft.key = "output_dir"
    draft.put("name", hf.name_of(draft.given.get("output_dir", "converted")))


def defaults(given: Mapping[str, Any]) -> Mapping[str, Any]:
    found: dict[str, Any] = {"stage": "sft", "finetuning_type": "lora", "cutoff_len": 2048, "seed": 42}
    found |= {"num_train_epochs": 3.0, "per_device_train_batch_size": 8, "logging_steps": 500, "save_steps": 500}
    found |= {"disable_gradient_checkpointing": False}
    if given.get("finetuning_type", "lora") == "lora" and "adapter_name_or_path" not in given:
        rank = given.get("lora_rank", 8)
        found |= {"lora_rank": 8, "lora_alpha": 2 * int(rank), "lora_target": "all"}
    return found


def finish(draft: Draft) -> None:
    hf.steps_or_epochs(draft)
    hf.strategy(draft)


def finetuning(draft: Draft, value: Any) -> None:
    if value == "lora":
        draft.put("adapter.type", "lora")
    elif value == "freeze":
        raise NoCounterpart("adapter: {type: selective, parameters: ['*layers.30.*', ...]} names what is trained")


def adapter_path(draft: Draft, value: Any) -> None:
    named = hf.names(value)
    if len(named) > 1:
        raise NoCounterpart("one adapter is trained further: merge the others first")
    draft.put("adapter.path", named[0])


def quantization(draft: Draft, value: Any) -> None:
    method = draft.given.get("quantization_method", "bnb")
    if method != "bnb" or int(value) not in (4, 8):
        raise NoCounterpart("a base has 8 or 4 bits, by bitsandbytes: quantization: 4bit")
    draft.put("quantization", f"{int(value)}bit", "nf4, quantized twice" if int(value) == 4 else "")


def checkpointing(draft: Draft, value: Any) -> None:
    draft.put("gradient_checkpointing", is_off(value))


def packing(draft: Draft, value: Any) -> None:
    if is_off(value):
        draft.off.append(draft.key)
    else:
        seen = is_off(draft.given.get("neat_packing")) and draft.key == "packing"
        draft.put("data.packing", True, "<- packed rows see one another there, and do not here" if seen else "")


def last_turn(draft: Draft, value: Any) -> None:
    if is_off(value):
        draft.off.append(draft.key)
    else:
        draft.put("data.train_on", "last")


def loss(draft: Draft, value: Any) -> None:
    if value not in LOSSES:
        raise NoCounterpart(f"converted are {', '.join(LOSSES)}: dpo.loss has the others that there are")
    draft.put("dpo.loss", LOSSES[value])


def ftx(draft: Draft, value: Any) -> None:
    """Takes the weight of cross-entropy beside a preference loss."""
    if is_off(value):
        draft.off.append(draft.key)
        return
    first = LOSSES.get(draft.given.get("pref_loss", "sigmoid"), "dpo")
    draft.put("dpo.loss", [first, "sft"])
    draft.put("dpo.loss_weights", [1.0, float(value)], "<- of cross-entropy a token, not a sequence")


def unshuffled(draft: Draft, value: Any) -> None:
    if is_off(value):
        draft.off.append(draft.key)
    else:
        draft.put("data.shuffle", False)


def datasets(draft: Draft, value: Any) -> None:
    put_sources(draft, {"train": _sources(draft, value), **_validation(draft)})
    if not set(hf.names(value)) <= set(_info(draft)):
        draft.notes["data.train"] = f"<- name the files that {INFO} gives, and their format: docs/data.md"


def eval_datasets(draft: Draft, value: Any) -> None:
    if "dataset" not in draft.given:
        put_sources(draft, {"validation": _sources(draft, value)})


def _validation(draft: Draft) -> dict[str, list[Source]]:
    value = draft.given.get("eval_dataset")
    return {} if is_off(value) else {"validation": _sources(draft, value)}


def _info(draft: Draft) -> Mapping[str, Any]:
    """Returns what the folder of datasets says of each, where it is here."""
    folder = draft.given.get("dataset_dir", "data")
    if isinstance(folder, Mapping):
        return folder
    try:
        found = json.loads((Path(str(folder)) / INFO).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, Mapping) else {}


def _sources(draft: Draft, value: Any) -> list[Source]:
    info, found = _info(draft), []
    for name in hf.names(value):
        described = info.get(name, {})
        at = described.get("hf_hub_url") or described.get("file_name") or name
        one: Source = {"path": str(at)}
        if described.get("file_name") and not described.get("hf_hub_url"):
            one["path"] = str(Path(str(draft.given.get("dataset_dir", "data"))) / at)
        elif is_hub(str(at)) and described:
            one["split"] = str(described.get("split") or "train")
            if described.get("subset"):
                one["name"] = str(described["subset"])
        if limit := described.get("num_samples") or draft.given.get("max_samples"):
            one["max_rows"] = int(limit)
        found.append({**one, **(_format(draft, described) if described else {})})
        for key in ("ms_hub_url", "script_url", "folder", "tags"):
            if described.get(key):
                draft.left.append(Left(f"{INFO}: {name}.{key}", described[key], "see docs/data.md for conversations"))
    return found


def _format(draft: Draft, described: Mapping[str, Any]) -> Source:
    """Returns the row format that a description of a dataset means for the stage."""
    columns = described.get("columns") or {}
    talks = described.get("formatting", "alpaca") in ("sharegpt", "openai")
    messages = columns.get("messages") or "conversations"
    asked = columns.get("prompt", "instruction")
    if draft.given["stage"] == "pt":
        return {"text": "{" + columns.get("prompt", "text") + "}"}
    if described.get("ranking"):
        pair = {name: "{" + columns.get(name, name) + "}" for name in ("chosen", "rejected")}
        return {"prompt": "{" + (messages if talks else asked) + "}", **pair}
    if columns.get("kto_tag"):
        answer = "{" + columns.get("response", "output") + "}"
        return {"prompt": "{" + asked + "}", "completion": answer, "label": columns["kto_tag"]}
    if talks:
        return {"messages": messages, **({"tools": columns["tools"]} if columns.get("tools") else {})}
    theirs = {"instruction": "prompt", "input": "query", "output": "response", "system": "system", "history": "history"}
    renamed = {ours: columns[key] for ours, key in theirs.items() if columns.get(key) not in (None, ours)}
    return {"template": "alpaca", **({"columns": renamed} if renamed else {})}


MODEL: dict[str, Rule] = {
    "add_tokens": becomes("model.new_tokens", hf.names),
    "finetuning_type": decides(finetuning, "adapter.type"),
    "adapter_name_or_path": decides(adapter_path, "adapter.path"),
    "lora_rank": becomes("adapter.r", int),
    "lora_alpha": becomes("adapter.lora_alpha", hf.number),
    "lora_dropout": becomes("adapter.lora_dropout", hf.number),
    "lora_target": hf.TARGETS,
    "additional_target": becomes("adapter.modules_to_save", hf.names),
    "quantization_bit": decides(quantization, "quantization"),
    "quantization_type": missing("4 bits are nf4, quantized twice"),
    "pissa_init": missing("B begins at zero, A as PEFT draws it"),
    "loraplus_lr_ratio": missing("all parameters have one learning rate"),
    "freeze_trainable_layers": missing("adapter: {type: selective, parameters: [...]} takes shell patterns over names"),
    "freeze_trainable_modules": missing(
        "adapter: {type: selective, parameters: [...]} takes shell patterns over names"
    ),
    "add_special_tokens": missing("model.new_tokens makes plain tokens, which decoding keeps"),
    "resize_vocab": needless("model.new_tokens does it"),
    "rope_scaling": missing("write it into the model's config.json"),
    "shift_attn": missing("attention is the model's own"),
    "moe_aux_loss_coef": missing("the model's own router_aux_loss_coef is taken, in stage sft"),
}
DATA: dict[str, Rule] = {
    "dataset": decides(datasets, "data.train"),
    "eval_dataset": decides(eval_datasets, "data.validation"),
    "max_samples": decides(lambda draft, value: None, "data.train"),
    "val_size": decides(hf.held_out, "data.validation_fraction"),
    "cutoff_len": becomes("data.max_length", int),
    "packing": decides(packing, "data.packing"),
    "neat_packing": decides(packing, "data.packing"),
    "streaming": becomes("data.streaming", bool),
    "buffer_size": becomes("data.shuffle_buffer", int),
    "train_on_prompt": decides(hf.everything, "data.completion_only_loss", "data.train_on"),
    "mask_history": decides(last_turn, "data.train_on"),
    "disable_shuffling": decides(unshuffled, "data.shuffle"),
    "template": missing("the tokenizer's own chat template is taken, or the file of data.chat_template"),
    "interleave_probs": missing("a source's weight is its share: data.train: [{path: ..., weight: 2}]"),
    "mix_strategy": missing("sources are mixed by their weights, or one after the other with data.shuffle: false"),
    "tool_format": missing("tools are written by the chat template"),
    "default_system": missing("what the chat template says stands"),
    "enable_thinking": missing("what the chat template does with thoughts stands: docs/chat-templates.md"),
}
TRAIN: dict[str, Rule] = {
    "early_stopping_steps": becomes("train.early_stopping_patience", int),
    "disable_gradient_checkpointing": decides(checkpointing, "gradient_checkpointing"),
    "use_swanlab": hf.tracker("swanlab"),
    "ray_num_workers": becomes("parallel.num_processes", int),
    "pref_beta": becomes("dpo.beta", hf.number),
    "pref_loss": decides(loss, "dpo.loss"),
    "pref_ftx": decides(ftx, "dpo.loss", "dpo.loss_weights"),
    "simpo_gamma": becomes("dpo.simpo_gamma", hf.number),
    "kto_chosen_weight": becomes("dpo.desirable_weight", hf.number),
    "kto_rejected_weight": becomes("dpo.undesirable_weight", hf.number),
    "dpo_label_smoothing": missing("dpo.label_smoothing is of dpo.loss: robust, simpo and cpo"),
    "ref_model": missing("the reference is the model as it was: dpo.reference"),
    "pure_bf16": missing("weights are float32 and computed in bf16: mixed_precision: bf16"),
    **dict.fromkeys(("use_galore", "use_apollo", "use_badam", "use_adam_mini", "use_muon"), missing("AdamW or SGD")),
    **dict.fromkeys(("use_dft_loss", "use_asft_loss", "use_eaft_loss"), missing("the loss is cross-entropy")),
    "fp8": missing("mixed_precision is no, bf16 or fp16"),
    "predict_with_generate": missing("train.eval_metrics measures answers while a model trains"),
    "compute_accuracy": missing("evaluation.metrics: [likelihood_accuracy] of scaleup evaluate"),
    "do_predict": missing("scaleup generate runs/NAME"),
}
SAME: dict[str, Rule] = {
    **dict.fromkeys(("stage", "output_dir"), decides(lambda draft, value: None, "stage", "name")),
    "dataset_dir": decides(lambda draft, value: None, "data.train"),
    "preprocessing_num_workers": needless(hf.OF_THE_MACHINE),
    **dict.fromkeys(
        ("flash_attn", "enable_liger_kernel", "use_unsloth", "use_reentrant_gc"), needless(hf.OF_THE_MACHINE)
    ),
    **dict.fromkeys(("double_quantization", "quantization_method"), needless("see quantization_bit")),
    "overwrite_cache": needless("tokens are kept by what the rows hold"),
    "plot_loss": needless("it is always so: loss.png"),
    "cache_dir": needless("set HF_HOME"),
    "use_fast_tokenizer": needless("the model's own files say it"),
    "tokenized_path": needless("rows are kept as tokens in the user's cache"),
}

LLAMA_FACTORY = Trainer(
    name="llamafactory",
    called="LLaMA-Factory",
    page="llama-factory",
    signature=frozenset({"finetuning_type", "dataset", "cutoff_len", "template", "lora_target", "quantization_bit"}),
    unless=frozenset({"checkpointer"}),
    rules={**hf.ARGUMENTS, **MODEL, **DATA, **TRAIN, **SAME},
    begin=begin,
    finish=finish,
    defaults=defaults,
)
