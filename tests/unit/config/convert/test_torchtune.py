"""Configs of torchtune: a whole one, and each key by itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from scaleup.config.stages.dpo import DPOConfig
from scaleup.config.stages.sft import SFTConfig
from scaleup.errors import ScaleupError
from tests.unit.config.convert.converted import draft_of, mapped, outcome, written

ROWS = {"_component_": "torchtune.datasets.chat_dataset", "source": "json", "data_files": "talks.jsonl"}
CHAT = {**ROWS, "conversation_column": "turns", "conversation_style": "sharegpt"}
WHOLE: dict[str, Any] = {
    "output_dir": "/tmp/out/small",
    "tokenizer": {
        "_component_": "torchtune.models.llama3.llama3_tokenizer",
        "path": "/tmp/m/original/tokenizer.model",
        "max_seq_len": 2048,
    },
    "model": {
        "_component_": "torchtune.models.llama3_2.qlora_llama3_2_1b",
        "lora_attn_modules": ["q_proj", "v_proj", "output_proj"],
        "apply_lora_to_mlp": True,
        "lora_rank": 64,
        "lora_alpha": 128,
    },
    "checkpointer": {"_component_": "torchtune.training.FullModelHFCheckpointer", "checkpoint_dir": "/tmp/m"},
    "dataset": {**CHAT, "packed": True},
    "dataset_val": {**CHAT, "data_files": "held.jsonl"},
    "run_val_every_n_steps": 20,
    "batch_size": 4,
    "batch_size_val": "${batch_size}",
    "epochs": 2,
    "max_steps_per_epoch": 100,
    "gradient_accumulation_steps": 8,
    "optimizer": {"_component_": "torch.optim.AdamW", "fused": True, "lr": "3e-4"},
    "lr_scheduler": {
        "_component_": "torchtune.training.lr_schedulers.get_cosine_schedule_with_warmup",
        "num_warmup_steps": 10,
    },
    "loss": {"_component_": "torchtune.modules.loss.LinearCrossEntropyLoss"},
    "metric_logger": {
        "_component_": "torchtune.training.metric_logging.WandBLogger",
        "log_dir": "${output_dir}/logs",
    },
    "dtype": "bf16",
    "enable_activation_checkpointing": True,
    "compile": False,
    "seed": None,
}


def test_a_whole_config(tmp_path: Path) -> None:
    text, config = written(WHOLE, tmp_path)
    assert isinstance(config, SFTConfig)
    assert (config.name, config.model.path, config.quantization) == ("small", "/tmp/m", "4bit")
    assert config.adapter is not None
    assert config.adapter.model_dump(exclude_unset=True) == {
        "type": "lora",
        "target_modules": ["q_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
        "r": 64,
        "lora_alpha": 128.0,
    }
    data, train = config.data, config.train
    assert [each.path for each in [*(data.train or []), *(data.validation or [])]] == ["talks.jsonl", "held.jsonl"]
    assert (data.messages, data.max_length, data.packing, data.train_on) == ("turns", 2048, True, "assistant")
    assert (train.per_device_train_batch_size, train.per_device_eval_batch_size) == (4, 4), "a reference is resolved"
    assert (train.max_steps, train.num_train_epochs, train.eval_steps) == (200, None, 20)
    assert (train.learning_rate, train.weight_decay, train.max_grad_norm) == (3e-4, 0.01, 0.0), "torch's defaults"
    assert (train.lr_scheduler_type, train.warmup_steps) == ("cosine", 10)
    assert (config.mixed_precision, config.gradient_checkpointing, config.report_to) == ("bf16", True, ["wandb"])
    assert "tokenizer.path: /tmp/m/original/tokenizer.model -> is the model's own" in text
    assert "seed" in text.rpartition("Empty or off there")[2]


def test_what_is_off_by_default_there_is_stated() -> None:
    draft = draft_of("torchtune", BARE)
    assert draft.values["train.lr_scheduler_type"] == "constant"
    assert draft.notes["data.max_length"].startswith("<- rows are not cut there")
    idle = draft_of("torchtune", {**BARE, "dataset": CHAT, "dataset_val": CHAT})
    assert "data.validation" not in idle.values and [left.key for left in idle.left] == ["dataset_val"]
    alpaca = {"_component_": "torchtune.datasets.alpaca_cleaned_dataset", "split": "train[:95%]"}
    values = draft_of("torchtune", {**BARE, "dataset": alpaca}).values
    assert values["data.train"] == [{"path": "yahma/alpaca-cleaned", "split": "train[:95%]"}]
    assert (values["data.template"], values["data.train_on"]) == ("alpaca", "all")


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        (
            {"_component_": "instruct_dataset", "column_map": {"input": "q"}},
            {"prompt": "{q}", "completion": "{output}"},
        ),
        ({"_component_": "text_completion_dataset", "column": "body"}, {"text": "{body}"}),
        ({"_component_": "preference_dataset"}, {"chosen": "{chosen}", "rejected": "{rejected}"}),
        ({"_component_": "samsum_dataset"}, {}),
    ],
)
def test_a_kind_of_rows(entry: dict[str, Any], expected: dict[str, str]) -> None:
    draft = draft_of("torchtune", {**BARE, "dataset": {**entry, "source": "rows.jsonl", "filter_fn": "f"}})
    assert {f"data.{key}": value for key, value in expected.items()}.items() <= draft.values.items()
    assert expected or draft.notes["data.train"].startswith("<- state the format")
    assert "dataset.filter_fn" in [left.key for left in draft.left]


def test_preferences(tmp_path: Path) -> None:
    raw = {
        "checkpointer": {"checkpoint_dir": "m"},
        "loss": {"_component_": "torchtune.rlhf.loss.DPOLoss", "beta": 0.2, "label_smoothing": 0.1},
    }
    text, config = written(raw, tmp_path)
    assert isinstance(config, DPOConfig) and config.dpo.beta == 0.2
    assert "loss.label_smoothing: 0.1" in text


BARE: dict[str, Any] = {"checkpointer.checkpoint_dir": "m"}
LORA = {**BARE, "model._component_": "lora_llama3_2_1b"}
DPO = {**BARE, "loss._component_": "DPOLoss"}
CASES: dict[str, tuple[dict[str, Any], Any, dict[str, Any]]] = {
    "output_dir": (BARE, "out/x", {"name": "x"}),
    "checkpointer.checkpoint_dir": (BARE, "other", {"model.path": "other"}),
    "tokenizer.path": (BARE, "elsewhere/tokenizer.model", {}),
    "tokenizer.max_seq_len": (BARE, 100, {"data.max_length": 100}),
    "model._component_": (BARE, "qlora_x", {"adapter.type": "lora", "quantization": "4bit"}),
    "model.lora_attn_modules": (LORA, ["output_proj"], {"adapter.target_modules": ["o_proj"]}),
    "model.apply_lora_to_mlp": (
        {**LORA, "model.lora_attn_modules": ["q_proj", "k_proj", "v_proj", "output_proj"]},
        True,
        {"adapter.target_modules": "all-linear"},
    ),
    "model.lora_rank": (LORA, 4, {"adapter.r": 4}),
    "model.lora_alpha": (LORA, 4, {"adapter.lora_alpha": 4.0}),
    "model.lora_dropout": (LORA, 0.1, {"adapter.lora_dropout": 0.1}),
    "model.use_dora": (LORA, True, {"adapter.use_dora": True}),
    "dataset": (BARE, CHAT, {"data.train": "talks.jsonl", "data.messages": "turns"}),
    "dataset_val": (
        {**BARE, "dataset": CHAT, "run_val_every_n_steps": 5},
        CHAT,
        {"data.validation": "talks.jsonl"},
    ),
    "run_val_every_n_steps": (BARE, 5, {"train.eval_steps": 5}),
    "shuffle": (BARE, False, {"data.shuffle": False}),
    "seed": (BARE, 7, {"train.seed": 7}),
    "batch_size": (BARE, 3, {"train.per_device_train_batch_size": 3}),
    "batch_size_val": (BARE, 3, {"train.per_device_eval_batch_size": 3}),
    "gradient_accumulation_steps": (BARE, 5, {"train.gradient_accumulation_steps": 5}),
    "epochs": (BARE, 2, {"train.num_train_epochs": 2.0}),
    "max_steps_per_epoch": (BARE, 50, {"train.max_steps": 50}),
    "optimizer._component_": (BARE, "torch.optim.AdamW", {"train.optimizer": "adamw"}),
    "optimizer.lr": (BARE, "3e-5", {"train.learning_rate": 3e-5}),
    "optimizer.weight_decay": (BARE, 0.1, {"train.weight_decay": 0.1}),
    "lr_scheduler._component_": (BARE, "get_cosine_schedule_with_warmup", {"train.lr_scheduler_type": "cosine"}),
    "lr_scheduler.num_warmup_steps": (BARE, 5, {"train.warmup_steps": 5}),
    "clip_grad_norm": (BARE, 0.3, {"train.max_grad_norm": 0.3}),
    "log_every_n_steps": (BARE, 10, {"train.logging_steps": 10}),
    "save_every_n_steps": (BARE, 10, {"train.save_steps": 10}),
    "loss._component_": (BARE, "DPOLoss", {"stage": "dpo"}),
    "loss.beta": (DPO, 0.3, {"dpo.beta": 0.3}),
    "dtype": (BARE, "bf16", {"mixed_precision": "bf16"}),
    "enable_activation_checkpointing": (BARE, True, {"gradient_checkpointing": True}),
    "fsdp_cpu_offload": (
        BARE,
        True,
        {"parallel.strategy": "zero3", "parallel.offload_parameters": True, "parallel.offload_optimizer": True},
    ),
    "metric_logger._component_": (BARE, "x.CometLogger", {"report_to": ["comet_ml"]}),
}
"""Each key -> the config around it, its value, and what it becomes. Nothing: it is listed at the end."""


@pytest.mark.parametrize("key", CASES)
def test_a_key(key: str) -> None:
    around, value, expected = CASES[key]
    changed, why = outcome("torchtune", around, key, value)
    assert changed == expected
    assert why is not None or expected


def test_every_rule_has_a_case() -> None:
    assert mapped("torchtune") == set(CASES)


@pytest.mark.parametrize(
    "raw", [{"ppo_epochs": 1}, {"teacher_model": {"_component_": "x"}}, {"quantizer": {"_component_": "x"}}]
)
def test_a_recipe_that_is_not_converted(raw: dict[str, Any]) -> None:
    with pytest.raises(ScaleupError, match="is of a recipe that is not converted -> "):
        draft_of("torchtune", {**BARE, **raw})
