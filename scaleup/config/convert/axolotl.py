"""This module holds the table of axolotl's keys. What its datasets are is in `axolotl_rows`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from scaleup.config.convert import hugging_face as hf
from scaleup.config.convert.axolotl_rows import datasets, pretraining, test_datasets
from scaleup.config.convert.draft import (
    Draft,
    NoCounterpart,
    Rule,
    Trainer,
    becomes,
    decides,
    is_off,
    missing,
    needless,
)
from scaleup.errors import ScaleupError

LOSSES = {"dpo": "dpo", "ipo": "ipo", "simpo": "simpo", "orpo": "orpo", "kto": "kto"}
PAIR_LOSSES = {"sigmoid": "dpo", "hinge": "hinge", "ipo": "ipo", "robust": "robust", "sppo_hard": "sppo", "sft": "sft"}
TOO_LONG = {"drop": "drop", "truncate": "truncate", "raise": "error"}
TOKENS = {"pad_token", "unk_token", "bos_token"}
"""Names the special tokens of which nothing is learned."""


def begin(draft: Draft) -> None:
    given = draft.given
    kind = given.get("rl")
    for key, ours in (("process_reward_model", "no stage scores steps"), ("qat", "no stage trains quantized")):
        if not is_off(given.get(key)):
            raise ScaleupError.of(key, "is not converted", f"{ours}: see docs/coming-from/axolotl.md")
    if not is_off(kind) and kind not in LOSSES:
        remedy = "start with scaleup init rl, and see docs/coming-from/axolotl.md"
        raise ScaleupError.of("rl", f"{kind!r} is not converted", remedy)
    stage = "reward" if given.get("reward_model") else "sft" if is_off(kind) else "dpo"
    draft.key = "rl" if stage == "dpo" else "reward_model" if stage == "reward" else ""
    draft.put("stage", stage)
    draft.key = "output_dir"
    draft.put("name", hf.name_of(given.get("output_dir", "converted")))
    if stage == "dpo":
        draft.key = "rl"
        draft.put("dpo.loss", LOSSES[str(kind)])


def defaults(given: Mapping[str, Any]) -> Mapping[str, Any]:
    found: dict[str, Any] = {"micro_batch_size": 1, "sequence_len": 512, "seed": 42, "bf16": "auto"}
    found |= {"lr_scheduler": "cosine", "num_epochs": 1.0}
    if "pretraining_dataset" not in given:
        found["excess_length_strategy"] = "drop"
    if not {"warmup_steps", "warmup_ratio"}.intersection(given):
        found["warmup_ratio"] = 0.03
    if not is_off(given.get("fp16")) or not is_off(given.get("float32")):
        del found["bf16"]
    return found


def finish(draft: Draft) -> None:
    hf.steps_or_epochs(draft)
    if draft.values.get("train.load_best_model_at_end") and "train.eval_steps" not in draft.values:
        draft.notes["train.load_best_model_at_end"] = "<- set train.eval_steps too"
    if draft.values.get("data.packing") and draft.values["stage"] != "sft":
        draft.drop("data.packing", "packing is for stage sft")
    hf.strategy(draft)


def batch_size(draft: Draft, value: Any) -> None:
    """Takes the rows of a step on one process, of which micro-batches make a whole number."""
    if "gradient_accumulation_steps" in draft.given:
        raise NoCounterpart("gradient_accumulation_steps is given, and wins")
    micro = int(draft.given["micro_batch_size"])
    draft.put("train.gradient_accumulation_steps", max(1, int(value) // micro), f"{value} // {micro}")


def adapter(draft: Draft, value: Any) -> None:
    if value not in ("lora", "qlora"):
        raise NoCounterpart("lora and qlora are converted: docs/config.md has the others that there are")
    draft.put("adapter.type", "lora")
    if value == "qlora" and "load_in_4bit" not in draft.given:
        draft.put("quantization", "4bit", "nf4, quantized twice")


def target_linear(draft: Draft, value: Any) -> None:
    if is_off(value):
        draft.off.append(draft.key)
    else:
        draft.put("adapter.target_modules", "all-linear")


def target_modules(draft: Draft, value: Any) -> None:
    if is_off(draft.given.get("lora_target_linear")):
        hf.modules(draft, value)
    else:
        draft.leave("lora_target_linear takes all of them", matters=False)


def tokenizer(draft: Draft, value: Any) -> None:
    if value == draft.given.get("base_model"):
        draft.leave("is the model's own", matters=False)
    else:
        draft.put("model.tokenizer", str(value))


def special_tokens(draft: Draft, value: Any) -> None:
    if set(value) <= TOKENS:
        draft.leave("padding is masked, and the tokenizer's other tokens are its own", matters=False)
    else:
        raise NoCounterpart("what ends an answer is the tokenizer's eos, or what the chat template ends a turn with")


def chat_template(draft: Draft, value: Any) -> None:
    if value in ("tokenizer_default", "jinja") or str(value).startswith("tokenizer_default_fallback"):
        draft.leave("the tokenizer's own template is taken, or the file of data.chat_template", matters=False)
    else:
        raise NoCounterpart("the tokenizer's own template is taken: write another to a file for data.chat_template")


def chat_template_jinja(draft: Draft, value: Any) -> None:
    if "\n" in value or "{" in value:
        raise NoCounterpart("write it to a file, and name that as data.chat_template")
    draft.put("data.chat_template", str(value))


def pair_losses(draft: Draft, value: Any) -> None:
    known = [PAIR_LOSSES[each] for each in value if each in PAIR_LOSSES]
    if len(known) < len(value):
        raise NoCounterpart(f"converted are {', '.join(PAIR_LOSSES)}")
    draft.put("dpo.loss", known[0] if len(known) == 1 else known)


def label_smoothing(draft: Draft, value: Any) -> None:
    if is_off(value):
        draft.off.append(draft.key)
    else:
        raise NoCounterpart("dpo.label_smoothing is of dpo.loss: robust, simpo and cpo")


def precomputed(draft: Draft, value: Any) -> None:
    if not is_off(value):
        draft.put("dpo.reference", "cached")


def orpo_alpha(draft: Draft, value: Any) -> None:
    if "rl_beta" in draft.given:
        raise NoCounterpart("rl_beta is given, and wins")
    draft.put("dpo.beta", hf.number(value), "lambda of ORPO")


def shuffled(draft: Draft, value: Any) -> None:
    if value is False:
        draft.put("data.shuffle", False)


MODEL: dict[str, Rule] = {
    "base_model": becomes("model.path", str),
    "revision_of_model": becomes("model.revision", str),
    "tokenizer_config": decides(tokenizer, "model.tokenizer"),
    "base_model_config": needless("the model's own files say it"),
    "trust_remote_code": becomes("model.trust_remote_code", bool),
    "tokens": becomes("model.new_tokens", list),
    "special_tokens": decides(special_tokens),
    "adapter": decides(adapter, "adapter.type", "quantization"),
    "load_in_8bit": hf.bits("8bit"),
    "load_in_4bit": hf.bits("4bit"),
    "lora_model_dir": becomes("adapter.path", str),
    "lora_r": becomes("adapter.r", int),
    "lora_alpha": becomes("adapter.lora_alpha", hf.number),
    "lora_dropout": becomes("adapter.lora_dropout", hf.number),
    "lora_target_modules": decides(target_modules, "adapter.target_modules"),
    "lora_target_linear": decides(target_linear, "adapter.target_modules"),
    "lora_modules_to_save": becomes("adapter.modules_to_save", hf.names),
    "peft_use_dora": becomes("adapter.use_dora", bool),
    "peft_use_rslora": becomes("adapter.use_rslora", bool),
    "unfrozen_parameters": missing("adapter: {type: selective, parameters: [...]} takes shell patterns over names"),
    "loraplus_lr_ratio": missing("all parameters have one learning rate"),
    "peft_init_lora_weights": missing("B begins at zero, A as PEFT draws it"),
    "lora_rank_pattern": missing("every matrix has one rank, but under adapter.type: adalora"),
    "lora_alpha_pattern": missing("every matrix has one lora_alpha"),
}
DATA: dict[str, Rule] = {
    "datasets": decides(datasets, "data.train"),
    "test_datasets": decides(test_datasets, "data.validation"),
    "pretraining_dataset": decides(pretraining, "data.train", "data.streaming"),
    "val_set_size": decides(hf.held_out, "data.validation_fraction"),
    "sequence_len": becomes("data.max_length", int),
    "excess_length_strategy": becomes("data.too_long", lambda value: TOO_LONG[value]),
    "sample_packing": becomes("data.packing", bool),
    "streaming": becomes("data.streaming", bool),
    "shuffle_merged_datasets": decides(shuffled, "data.shuffle"),
    "train_on_inputs": decides(hf.everything, "data.completion_only_loss", "data.train_on"),
    "chat_template": decides(chat_template, "data.chat_template"),
    "chat_template_jinja": decides(chat_template_jinja, "data.chat_template"),
    "eval_sequence_len": missing("validation rows have data.max_length too"),
    "dataset_exact_deduplication": missing("take rows that come twice out of the file"),
    "default_system_message": missing("what the chat template says stands"),
    "eot_tokens": missing("what ends a turn is what the chat template writes there"),
    "curriculum_sampling": missing("data.shuffle: false takes rows as they lie"),
}
TRAIN: dict[str, Rule] = {
    "num_epochs": becomes("train.num_train_epochs", hf.number),
    "learning_rate": becomes("train.learning_rate", hf.number),
    "lr_scheduler": becomes("train.lr_scheduler_type", hf.scheduler),
    "warmup_ratio": becomes("train.warmup_ratio", hf.number),
    "optimizer": decides(hf.optimizer, "train.optimizer"),
    "weight_decay": becomes("train.weight_decay", hf.number),
    "adam_beta1": becomes("train.adam_beta1", hf.number),
    "adam_beta2": becomes("train.adam_beta2", hf.number),
    "adam_epsilon": becomes("train.adam_epsilon", hf.number),
    "max_grad_norm": becomes("train.max_grad_norm", hf.number),
    "micro_batch_size": becomes("train.per_device_train_batch_size", int),
    "eval_batch_size": becomes("train.per_device_eval_batch_size", int),
    "gradient_accumulation_steps": becomes("train.gradient_accumulation_steps", int),
    "batch_size": decides(batch_size, "train.gradient_accumulation_steps"),
    "group_by_length": becomes("train.group_by_length", bool),
    "eval_steps": becomes("train.eval_steps", hf.whole),
    "save_steps": becomes("train.save_steps", hf.whole),
    "save_total_limit": becomes("train.save_total_limit", int),
    "logging_steps": becomes("train.logging_steps", hf.whole),
    "evals_per_epoch": missing(f"set train.eval_steps: {hf.BY_EPOCH}"),
    "saves_per_epoch": missing(f"set train.save_steps: {hf.BY_EPOCH}"),
    "eval_strategy": hf.by_strategy("train.eval_steps"),
    "save_strategy": hf.by_strategy("train.save_steps"),
    "early_stopping_patience": becomes("train.early_stopping_patience", int),
    "load_best_model_at_end": becomes("train.load_best_model_at_end", bool),
    "metric_for_best_model": becomes("train.metric_for_best_model", hf.best_by),
    "greater_is_better": becomes("train.greater_is_better", bool),
    "seed": becomes("train.seed", int),
    "bf16": hf.precision("bf16"),
    "fp16": hf.precision("fp16"),
    "gradient_checkpointing": becomes("gradient_checkpointing", lambda value: not is_off(value)),
    "world_size": becomes("parallel.num_processes", int),
    "rl_beta": becomes("dpo.beta", hf.number),
    "orpo_alpha": decides(orpo_alpha, "dpo.beta"),
    "simpo_gamma": becomes("dpo.simpo_gamma", hf.number),
    "cpo_alpha": becomes("dpo.cpo_alpha", hf.number),
    "kto_desirable_weight": becomes("dpo.desirable_weight", hf.number),
    "kto_undesirable_weight": becomes("dpo.undesirable_weight", hf.number),
    "dpo_loss_type": decides(pair_losses, "dpo.loss"),
    "dpo_loss_weights": becomes("dpo.loss_weights", list),
    "dpo_label_smoothing": decides(label_smoothing),
    "precompute_ref_log_probs": decides(precomputed, "dpo.reference"),
    "center_rewards_coefficient": becomes("reward.center_coefficient", hf.number),
    "wandb_project": hf.tracker("wandb"),
    "use_wandb": hf.tracker("wandb"),
    "use_mlflow": hf.tracker("mlflow"),
    "use_comet": hf.tracker("comet_ml"),
    "use_swanlab": hf.tracker("swanlab"),
    "loss_watchdog_threshold": missing("a loss that is not finite ends the run; there is no threshold"),
    "relora": missing("an adapter is merged once, by scaleup export"),
    "lr_groups": missing("all parameters have one learning rate"),
    "cosine_min_lr_ratio": missing("cosine goes to 0"),
    "context_parallel_size": missing("a row is on one device: shorten it, or use gradient_checkpointing"),
    "sequence_parallel_degree": missing("a row is on one device: shorten it, or use gradient_checkpointing"),
    "tensor_parallel_size": missing("a layer is on one device, or sharded by zero3 and fsdp2"),
    "bfloat16": missing("weights are float32 and computed in bf16: mixed_precision: bf16"),
    "float16": missing("weights are float32 and computed in fp16: mixed_precision: fp16"),
    "fp8": missing("mixed_precision is no, bf16 or fp16"),
    "plugins": missing("kernels and losses are the run's own: docs/design/loss.md"),
}
OF_THE_FILES = "the model's own files say it"
SAME: dict[str, Rule] = {
    **dict.fromkeys(
        ("model_type", "tokenizer_type", "processor_type", "is_llama_derived_model"), needless(OF_THE_FILES)
    ),
    **dict.fromkeys(("rl", "reward_model", "output_dir"), decides(lambda draft, value: None, "stage", "name")),
    **dict.fromkeys(("tokenizer_use_fast", "tokenizer_legacy"), needless(OF_THE_FILES)),
    **dict.fromkeys(
        ("flash_attention", "sdp_attention", "xformers_attention", "attn_implementation", "flex_attention"),
        needless("attention is Transformers' choice for the model, sdpa as a rule"),
    ),
    **dict.fromkeys(
        ("tf32", "torch_compile", "low_cpu_mem_usage", "ddp_timeout", "dataloader_num_workers", "max_memory"),
        needless(hf.OF_THE_MACHINE),
    ),
    **dict.fromkeys(
        ("dataloader_pin_memory", "dataloader_prefetch_factor", "dataset_processes", "dataset_num_proc", "lora_on_cpu"),
        needless(hf.OF_THE_MACHINE),
    ),
    **dict.fromkeys(
        ("lora_mlp_kernel", "lora_qkv_kernel", "lora_o_kernel", "gradient_checkpointing_kwargs", "fsdp_version"),
        needless(hf.OF_THE_MACHINE),
    ),
    "dataset_prepared_path": needless("rows are kept as tokens in the user's cache"),
    "eval_sample_packing": needless("validation rows are not packed"),
    "pad_to_sequence_len": needless("a micro-batch is padded to its longest row"),
    "remove_unused_columns": needless("columns that no template names are not read"),
    "resume_from_checkpoint": needless("scaleup run FILE --resume"),
    "auto_resume_from_checkpoints": needless("scaleup run FILE --resume"),
    "loss_watchdog_patience": needless("belongs to loss_watchdog_threshold"),
    "save_first_step": needless("checkpoints are tested"),
    "save_safetensors": needless("it is always so"),
    "use_tensorboard": needless("it is always so"),
    "strict": needless("it is always so: unknown keys are refused"),
    **dict.fromkeys(
        ("hub_model_id", "hub_strategy", "hf_use_auth_token", "push_dataset_to_hub"),
        needless("nothing is uploaded: push the folder of scaleup export"),
    ),
    **dict.fromkeys(
        ("wandb_entity", "wandb_watch", "wandb_name", "wandb_run_id", "wandb_log_model", "wandb_mode"),
        needless("is told in the tracker's environment variables"),
    ),
    **dict.fromkeys(
        ("mlflow_tracking_uri", "mlflow_experiment_name", "comet_project_name", "swanlab_project"),
        needless("is told in the tracker's environment variables"),
    ),
}

AXOLOTL = Trainer(
    name="axolotl",
    called="axolotl",
    page="axolotl",
    signature=frozenset({"base_model"}),
    unless=frozenset(),
    rules={**hf.TRAINING, **MODEL, **DATA, **TRAIN, **SAME},
    begin=begin,
    finish=finish,
    defaults=defaults,
)
