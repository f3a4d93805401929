"""This module holds the table of the keys of TRL's commands. A file does not say which of them reads it."""

from __future__ import annotations

from collections.abc import Mapping
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
from scaleup.config.convert.rows import Source, is_hub, put_sources, source
from scaleup.errors import ScaleupError

SFT = frozenset({"dataset_text_field", "assistant_only_loss", "completion_only_loss", "packing"})
DPO = frozenset({"beta", "label_smoothing", "f_divergence_type", "loss_weights", "ld_alpha"})
KTO = frozenset({"desirable_weight", "undesirable_weight"})
REWARD = frozenset({"center_rewards_coefficient"})
"""Name the keys by which one command's files are known."""
RL = ("reward_funcs", "num_generations", "reward_model_name_or_path")
STAGES = {"sft": "sft", "dpo": "dpo", "kto": "dpo", "reward": "reward"}
LEARNING_RATES = {"sft": 2e-5, "dpo": 1e-6, "kto": 1e-6, "reward": 1e-4}
LOSSES = {"sigmoid": "dpo", "hinge": "hinge", "ipo": "ipo", "robust": "robust", "sppo_hard": "sppo", "sft": "sft"}
FORMATS: dict[str, Source] = {
    "dpo": {"prompt": "{prompt}", "chosen": "{chosen}", "rejected": "{rejected}"},
    "kto": {"prompt": "{prompt}", "completion": "{completion}", "label": "label"},
    "reward": {"prompt": "{prompt}", "chosen": "{chosen}", "rejected": "{rejected}"},
}
GUESSED = "<- the columns of a hub's dataset are not looked at: state what they are, docs/data.md"


def trl(command: str, signature: frozenset[str], unless: frozenset[str] = frozenset()) -> Trainer:
    """Returns how files of one of TRL's commands are read."""

    def begin(draft: Draft) -> None:
        for key in RL:
            if not is_off(draft.given.get(key)):
                raise ScaleupError.of(
                    key, "is not converted", "start with scaleup init rl, see docs/coming-from/trl.md"
                )
        draft.key = ""
        told = command != "sft" or not SFT.isdisjoint(set(draft.given) - draft.defaults)
        others = "<- if it is of another command: --from trl-dpo, trl-kto or trl-reward"
        draft.put("stage", STAGES[command], "" if told else others)
        draft.key = "output_dir"
        draft.put("name", hf.name_of(draft.given.get("output_dir", "converted")))
        if command == "kto":
            draft.put("dpo.loss", "kto")

    def defaults(given: Mapping[str, Any]) -> Mapping[str, Any]:
        found: dict[str, Any] = {"max_length": 1024, "gradient_checkpointing": True, "logging_steps": 10, "seed": 42}
        found |= {"learning_rate": LEARNING_RATES[command], "num_train_epochs": 3.0, "save_steps": 500}
        if not given.get("fp16"):
            found["bf16"] = True
        if given.get("use_peft"):
            found |= {"lora_r": 16, "lora_alpha": 32, "lora_dropout": 0.05}
        if command == "sft" and not SFT.intersection(given).difference({"packing"}):
            found["assistant_only_loss"] = False
        return found

    return Trainer(
        name=f"trl-{command}",
        called="TRL",
        page="trl",
        signature=signature,
        unless=unless,
        rules=RULES,
        begin=begin,
        finish=finish,
        defaults=defaults,
    )


def finish(draft: Draft) -> None:
    hf.steps_or_epochs(draft)
    hf.strategy(draft)
    if draft.values.get("data.train_on") and "data.messages" not in draft.values:
        draft.drop("data.train_on", "only conversations are learned in parts: data.train_on")


def dataset(draft: Draft, value: Any) -> None:
    given = draft.given
    if "datasets" in given:
        draft.leave("datasets is given, and wins", matters=False)
        return
    name, streams = given.get("dataset_config"), given.get("dataset_streaming")
    splits = {"train": source(str(value), None, given.get("dataset_train_split"), name)}
    if not is_off(given.get("eval_strategy")):
        if is_hub(str(value)):
            splits["validation"] = source(str(value), None, given.get("dataset_test_split", "test"), name)
        else:
            test = given.get("dataset_test_split", "test")
            draft.left.append(Left("dataset_test_split", test, "name its file: data.validation"))
    _put(draft, splits)
    if not is_off(streams):
        draft.put("data.streaming", True)


def mixture(draft: Draft, value: Any) -> None:
    found = [
        each
        for entry in value
        for each in source(str(entry["path"]), entry.get("data_files"), entry.get("split"), entry.get("name"))
    ]
    _put(draft, {"train": found})
    if any(not is_off(entry.get(key)) for entry in value for key in ("columns", "fraction", "data_dir")):
        raise NoCounterpart("a source says path, split, name, weight and max_rows: docs/data.md")


def _put(draft: Draft, splits: Mapping[str, list[Source]]) -> None:
    """Sets sources with a row format; that of local files is told by their columns."""
    field, note = draft.given.get("dataset_text_field"), ""
    form: Source = {"text": "{" + str(field) + "}"} if field else {}
    if not form and any(is_hub(each["path"]) for sources in splits.values() for each in sources):
        stage = "kto" if draft.values.get("dpo.loss") == "kto" else draft.values["stage"]
        form, note = FORMATS.get(stage, {"messages": "messages"}), GUESSED
    put_sources(draft, {split: [{**each, **form} for each in sources] for split, sources in splits.items()})
    if note:
        draft.notes["data.train"] = note


def peft(draft: Draft, value: Any) -> None:
    if is_off(value):
        draft.off.append(draft.key)
    else:
        draft.put("adapter.type", "lora")


def answers_only(draft: Draft, value: Any) -> None:
    """Takes what is learned of a conversation: everything, unless the file says otherwise."""
    draft.put("data.train_on", "all" if is_off(value) else "assistant", "TRL's default" if is_off(value) else "")


def completion_only(draft: Draft, value: Any) -> None:
    draft.put("data.completion_only_loss", bool(value))


def losses(draft: Draft, value: Any) -> None:
    named = hf.names(value)
    if draft.values["stage"] == "sft" and set(named) <= {"nll", "chunked_nll"}:
        draft.leave("the loss is cross-entropy", matters=False)
    elif draft.values.get("dpo.loss") == "kto" and named == ["kto"]:
        draft.leave("dpo.loss: kto says it", matters=False)
    elif draft.values["stage"] == "dpo" and set(named) <= set(LOSSES):
        ours = [LOSSES[name] for name in named]
        draft.put("dpo.loss", ours[0] if len(ours) == 1 else ours)
    else:
        raise NoCounterpart(f"dpo.loss has {', '.join(LOSSES.values())} and others: docs/stages/dpo.md")


def smoothing(draft: Draft, value: Any) -> None:
    if is_off(value):
        draft.off.append(draft.key)
    elif "robust" in hf.names(draft.given.get("loss_type", "sigmoid")):
        draft.put("dpo.label_smoothing", float(value))
    else:
        raise NoCounterpart("dpo.label_smoothing is of dpo.loss: robust, simpo and cpo")


def cached(draft: Draft, value: Any) -> None:
    if is_off(value):
        draft.off.append(draft.key)
    else:
        draft.put("dpo.reference", "cached")


def packed(draft: Draft, value: Any) -> None:
    seen = draft.given.get("packing_strategy") == "wrapped"
    draft.put("data.packing", bool(value), "<- rows are packed whole here, and not cut" if seen and value else "")


RULES: dict[str, Rule] = {
    **hf.ARGUMENTS,
    "dataset_name": decides(dataset, "data.train"),
    "dataset_config": decides(lambda draft, value: None, "data.train"),
    "dataset_train_split": decides(lambda draft, value: None, "data.train"),
    "dataset_test_split": decides(lambda draft, value: None, "data.validation"),
    "dataset_streaming": decides(lambda draft, value: None, "data.streaming"),
    "datasets": decides(mixture, "data.train"),
    "streaming": becomes("data.streaming", bool),
    "test_split_size": decides(hf.held_out, "data.validation_fraction"),
    "dataset_text_field": decides(lambda draft, value: None, "data.text"),
    "chat_template_path": becomes("data.chat_template", str),
    "max_length": becomes("data.max_length", int),
    "packing": decides(packed, "data.packing"),
    "completion_only_loss": decides(completion_only, "data.completion_only_loss"),
    "assistant_only_loss": decides(answers_only, "data.train_on"),
    "use_peft": decides(peft, "adapter.type"),
    "lora_r": becomes("adapter.r", int),
    "lora_alpha": becomes("adapter.lora_alpha", hf.number),
    "lora_dropout": becomes("adapter.lora_dropout", hf.number),
    "lora_target_modules": hf.TARGETS,
    "lora_modules_to_save": becomes("adapter.modules_to_save", hf.names),
    "load_in_8bit": hf.bits("8bit"),
    "load_in_4bit": hf.bits("4bit"),
    "gradient_checkpointing": becomes("gradient_checkpointing", bool),
    "num_processes": becomes("parallel.num_processes", int),
    "num_machines": becomes("parallel.num_nodes", int),
    "beta": becomes("dpo.beta", hf.number),
    "loss_type": decides(losses, "dpo.loss"),
    "loss_weights": becomes("dpo.loss_weights", list),
    "label_smoothing": decides(smoothing, "dpo.label_smoothing"),
    "desirable_weight": becomes("dpo.desirable_weight", hf.number),
    "undesirable_weight": becomes("dpo.undesirable_weight", hf.number),
    "precompute_ref_log_probs": decides(cached, "dpo.reference"),
    "center_rewards_coefficient": becomes("reward.center_coefficient", hf.number),
    "output_dir": decides(lambda draft, value: None, "name"),
    "accelerate_config": missing("set parallel.strategy: zero1, zero2, zero3 or fsdp2"),
    "lora_task_type": needless("the stage says it"),
    "lora_target_parameters": missing("adapter.target_modules names modules"),
    "eos_token": missing("what ends an answer is the tokenizer's eos, or what the chat template ends a turn with"),
    "truncation_mode": missing("data.too_long: truncate cuts the end; preferences keep their last tokens"),
    "max_prompt_length": missing("data.max_length counts prompt and answer together"),
    "disable_dropout": missing("dropout is as the model's config has it"),
    "f_divergence_type": missing("the divergence is the reverse KL"),
    "ld_alpha": missing("all tokens of an answer weigh the same"),
    "use_weighting": missing("all pairs weigh the same"),
    "sync_ref_model": missing("the reference stays what the model was"),
    "router_aux_loss_coef": missing("the model's own router_aux_loss_coef is taken, in stage sft"),
    "model_init_kwargs": missing("model.revision and model.trust_remote_code are all there are"),
    "bnb_4bit_quant_type": needless("4 bits are nf4"),
    "use_bnb_nested_quant": needless("4 bits are quantized twice"),
    "pad_token": needless("padding is masked"),
    "dataset_num_proc": needless(hf.OF_THE_MACHINE),
    "activation_offloading": needless(hf.OF_THE_MACHINE),
    "padding_free": needless("data.packing does it"),
    "packing_strategy": needless("rows are packed whole, as by bfd"),
    "eval_packing": needless("validation rows are not packed"),
    "shuffle_dataset": needless("rows are shuffled by train.seed"),
    "dtype": needless("weights are float32, or as the strategy holds them: docs/design/memory.md"),
    "attn_implementation": needless("attention is Transformers' choice for the model, sdpa as a rule"),
    "remove_unused_columns": needless("columns that no template names are not read"),
    "env": needless("set it in the shell"),
}

TRL = (
    trl("sft", SFT | {"dataset_name", "use_peft"}, DPO | KTO | REWARD),
    trl("dpo", DPO, KTO),
    trl("kto", KTO),
    trl("reward", REWARD),
)
"""Holds how the files of each command are read."""
