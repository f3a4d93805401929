"""Configs of LLaMA-Factory: a whole one with its dataset_info.json, and each key by itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from scaleup.config.stages.dpo import DPOConfig
from scaleup.config.stages.sft import SFTConfig
from scaleup.errors import ScaleupError
from tests.unit.config.convert.converted import draft_of, mapped, outcome, written

WHOLE: dict[str, Any] = {
    "model_name_or_path": "acme/small-4b",
    "stage": "sft",
    "do_train": True,
    "finetuning_type": "lora",
    "lora_rank": 16,
    "lora_target": "q_proj, v_proj",
    "quantization_bit": 8,
    "dataset": "mine,talks",
    "template": "qwen3",
    "cutoff_len": 1024,
    "max_samples": 100,
    "val_size": 0.1,
    "output_dir": "saves/small/lora",
    "per_device_train_batch_size": 1,
    "gradient_accumulation_steps": 8,
    "learning_rate": "1e-4",
    "lr_scheduler_type": "cosine",
    "warmup_ratio": 0.1,
    "bf16": True,
    "eval_strategy": "steps",
    "eval_steps": 50,
    "report_to": "none",
    "resume_from_checkpoint": None,
    "deepspeed": "examples/deepspeed/ds_z2_offload_config.json",
}
INFO = {
    "mine": {"file_name": "mine.json", "columns": {"prompt": "question", "response": "answer"}},
    "talks": {"hf_hub_url": "acme/talks", "formatting": "sharegpt", "columns": {"messages": "turns", "tools": "tools"}},
    "pairs": {"file_name": "pairs.json", "ranking": True, "columns": {"prompt": "q", "chosen": "a", "rejected": "b"}},
    "single": {"file_name": "single.json", "columns": {"prompt": "q", "response": "a", "kto_tag": "ok"}},
    "books": {"file_name": "books.json", "columns": {"prompt": "body"}},
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "data/dataset_info.json").write_text(json.dumps(INFO))
    return tmp_path


def test_a_whole_config(folder: Path) -> None:
    text, config = written(WHOLE, folder)
    assert isinstance(config, SFTConfig)
    assert (config.name, config.model.path, config.quantization) == ("lora", "acme/small-4b", "8bit")
    assert config.adapter is not None
    assert config.adapter.model_dump(exclude_unset=True) == {
        "type": "lora",
        "r": 16,
        "lora_alpha": 32.0,
        "target_modules": ["q_proj", "v_proj"],
    }
    assert [each.model_dump(exclude_unset=True) for each in config.data.train or []] == [
        {
            "path": "data/mine.json",
            "max_rows": 100,
            "template": "alpaca",
            "columns": {"instruction": "question", "output": "answer"},
        },
        {"path": "acme/talks", "split": "train", "max_rows": 100, "messages": "turns", "tools": "tools"},
    ]
    assert (config.data.max_length, config.data.validation_fraction) == (1024, 0.1)
    train = config.train
    assert (train.num_train_epochs, train.learning_rate, train.eval_steps, train.save_steps) == (3.0, 1e-4, 50, 500)
    assert (config.mixed_precision, config.gradient_checkpointing, config.report_to) == ("bf16", True, [])
    assert (config.parallel.strategy, config.parallel.offload_optimizer) == ("zero2", True)
    different = text.partition("# Without a counterpart")[2].partition("# Not needed here")[0]
    assert "template: qwen3 -> the tokenizer's own" in different and "do_train" not in different


def test_every_key_stands_somewhere(folder: Path) -> None:
    draft = draft_of("llamafactory", WHOLE)
    told = {*draft.came_from.values(), *(left.key for left in draft.left), *draft.off}
    assert set(WHOLE) - told == {"max_samples"}, "it is the sources'"


def test_without_the_file_of_datasets_a_look_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    draft = draft_of("llamafactory", WHOLE)
    assert [each["path"] for each in draft.values["data.train"]] == ["mine", "talks"]
    assert draft.notes["data.train"].startswith("<- name the files that dataset_info.json gives")


@pytest.mark.parametrize(
    ("stage", "dataset", "expected"),
    [
        ("dpo", "pairs", {"prompt": "{q}", "chosen": "{a}", "rejected": "{b}"}),
        ("kto", "single", {"prompt": "{q}", "completion": "{a}", "label": "ok"}),
        ("rm", "pairs", {"prompt": "{q}", "chosen": "{a}", "rejected": "{b}"}),
        ("pt", "books", {"text": "{body}"}),
    ],
)
def test_the_formats_of_the_stages(stage: str, dataset: str, expected: dict[str, str], folder: Path) -> None:
    _, config = written({**BARE, "stage": stage, "dataset": dataset}, folder)
    assert config.data.model_dump(exclude_unset=True, include=set(expected)) == expected
    assert [each.path for each in config.data.train or []] == [f"data/{dataset}.json"]
    if isinstance(config, DPOConfig):
        assert config.dpo.loss == stage


BARE: dict[str, Any] = {"model_name_or_path": "m", "finetuning_type": "full", "learning_rate": 1e-4}
LORA = {**BARE, "finetuning_type": "lora"}
DPO = {**BARE, "stage": "dpo"}
CASES: dict[str, tuple[dict[str, Any], Any, dict[str, Any]]] = {
    "model_name_or_path": (BARE, "other/m", {"model.path": "other/m"}),
    "model_revision": (BARE, "abc", {"model.revision": "abc"}),
    "trust_remote_code": (BARE, True, {"model.trust_remote_code": True}),
    "add_tokens": (BARE, "<a>,<b>", {"model.new_tokens": ["<a>", "<b>"]}),
    "finetuning_type": (LORA, "freeze", {}),
    "adapter_name_or_path": (LORA, "saves/a", {"adapter.path": "saves/a"}),
    "lora_rank": (LORA, 4, {"adapter.r": 4, "adapter.lora_alpha": 8.0}),
    "lora_alpha": (LORA, 4, {"adapter.lora_alpha": 4.0}),
    "lora_dropout": (LORA, 0.1, {"adapter.lora_dropout": 0.1}),
    "lora_target": (LORA, "q_proj", {"adapter.target_modules": ["q_proj"]}),
    "additional_target": (LORA, "lm_head", {"adapter.modules_to_save": ["lm_head"]}),
    "use_rslora": (LORA, True, {"adapter.use_rslora": True}),
    "use_dora": (LORA, True, {"adapter.use_dora": True}),
    "quantization_bit": (LORA, 4, {"quantization": "4bit"}),
    "dataset": (
        BARE,
        "mine",
        {
            "data.train": "data/mine.json",
            "data.template": "alpaca",
            "data.columns": {"instruction": "question", "output": "answer"},
        },
    ),
    "dataset_dir": ({**BARE, "dataset": "mine"}, "elsewhere", {"data.train": "mine"}),
    "eval_dataset": (
        BARE,
        "books",
        {"data.validation": "data/books.json", "data.template": "alpaca", "data.columns": {"instruction": "body"}},
    ),
    "max_samples": ({**BARE, "dataset": "mine"}, 5, {"data.train": [{"path": "data/mine.json", "max_rows": 5}]}),
    "val_size": (BARE, 0.2, {"data.validation_fraction": 0.2}),
    "cutoff_len": (BARE, 100, {"data.max_length": 100}),
    "packing": (BARE, True, {"data.packing": True}),
    "neat_packing": (BARE, True, {"data.packing": True}),
    "streaming": (BARE, True, {"data.streaming": True}),
    "buffer_size": (BARE, 100, {"data.shuffle_buffer": 100}),
    "train_on_prompt": (BARE, True, {"data.completion_only_loss": False, "data.train_on": "all"}),
    "mask_history": (BARE, True, {"data.train_on": "last"}),
    "disable_shuffling": (BARE, True, {"data.shuffle": False}),
    "num_train_epochs": (BARE, 2, {"train.num_train_epochs": 2.0}),
    "max_steps": (BARE, 50, {"train.max_steps": 50}),
    "learning_rate": (BARE, "3e-5", {"train.learning_rate": 3e-5}),
    "lr_scheduler_type": (BARE, "linear", {"train.lr_scheduler_type": "linear"}),
    "warmup_steps": (BARE, 0.1, {"train.warmup_ratio": 0.1}),
    "warmup_ratio": (BARE, 0.2, {"train.warmup_ratio": 0.2}),
    "optim": (BARE, "adamw_torch", {"train.optimizer": "adamw"}),
    "weight_decay": (BARE, 0.1, {"train.weight_decay": 0.1}),
    "adam_beta1": (BARE, 0.8, {"train.adam_beta1": 0.8}),
    "adam_beta2": (BARE, 0.95, {"train.adam_beta2": 0.95}),
    "adam_epsilon": (BARE, "1e-6", {"train.adam_epsilon": 1e-6}),
    "max_grad_norm": (BARE, 0.3, {"train.max_grad_norm": 0.3}),
    "per_device_train_batch_size": (BARE, 3, {"train.per_device_train_batch_size": 3}),
    "per_device_eval_batch_size": (BARE, 3, {"train.per_device_eval_batch_size": 3}),
    "gradient_accumulation_steps": (BARE, 5, {"train.gradient_accumulation_steps": 5}),
    "logging_steps": (BARE, 10, {"train.logging_steps": 10}),
    "eval_steps": (BARE, 20, {"train.eval_steps": 20}),
    "save_steps": (BARE, 20, {"train.save_steps": 20}),
    "save_total_limit": (BARE, 1, {"train.save_total_limit": 1}),
    "eval_strategy": (BARE, "epoch", {}),
    "save_strategy": (BARE, "epoch", {}),
    "early_stopping_steps": (BARE, 2, {"train.early_stopping_patience": 2}),
    "load_best_model_at_end": (BARE, True, {"train.load_best_model_at_end": True}),
    "metric_for_best_model": (BARE, "eval_loss", {"train.metric_for_best_model": "loss"}),
    "greater_is_better": (BARE, False, {"train.greater_is_better": False}),
    "group_by_length": (BARE, True, {"train.group_by_length": True}),
    "seed": (BARE, 7, {"train.seed": 7}),
    "bf16": (BARE, True, {"mixed_precision": "bf16"}),
    "fp16": (BARE, True, {"mixed_precision": "fp16"}),
    "disable_gradient_checkpointing": (BARE, True, {"gradient_checkpointing": False}),
    "report_to": (BARE, ["wandb", "tensorboard"], {"report_to": ["wandb"]}),
    "use_swanlab": (BARE, True, {"report_to": ["swanlab"]}),
    "ray_num_workers": (BARE, 4, {"parallel.num_processes": 4}),
    "deepspeed": (BARE, "ds_z3_config.json", {"parallel.strategy": "zero3"}),
    "fsdp": (BARE, "full_shard auto_wrap", {"parallel.strategy": "fsdp2"}),
    "fsdp_config": (BARE, {"fsdp_offload_params": False}, {"parallel.strategy": "fsdp2"}),
    "pref_beta": (DPO, 0.3, {"dpo.beta": 0.3}),
    "pref_loss": (DPO, "orpo", {"dpo.loss": "orpo"}),
    "pref_ftx": (DPO, 0.5, {"dpo.loss": ["dpo", "sft"], "dpo.loss_weights": [1.0, 0.5]}),
    "simpo_gamma": ({**DPO, "pref_loss": "simpo"}, 1.0, {"dpo.simpo_gamma": 1.0}),
    "kto_chosen_weight": ({**BARE, "stage": "kto"}, 0.5, {"dpo.desirable_weight": 0.5}),
    "kto_rejected_weight": ({**BARE, "stage": "kto"}, 0.5, {"dpo.undesirable_weight": 0.5}),
    "stage": (BARE, "rm", {"stage": "reward"}),
    "output_dir": (BARE, "saves/x", {"name": "x"}),
}
"""Each key -> the config around it, its value, and what it becomes. Nothing: it is listed at the end."""


@pytest.mark.parametrize("key", CASES)
def test_a_key(key: str, folder: Path) -> None:
    around, value, expected = CASES[key]
    changed, why = outcome("llamafactory", around, key, value)
    assert changed == expected
    assert why is not None or expected


def test_every_rule_has_a_case() -> None:
    assert mapped("llamafactory") == set(CASES)


@pytest.mark.parametrize("raw", [{"stage": "ppo"}, {"finetuning_type": "oft"}])
def test_a_kind_of_run_that_is_not_converted(raw: dict[str, Any]) -> None:
    with pytest.raises(ScaleupError, match="is not converted -> "):
        draft_of("llamafactory", {**BARE, **raw})


def test_packed_rows_that_saw_one_another_are_told() -> None:
    assert draft_of("llamafactory", {**BARE, "packing": True}).notes["data.packing"].startswith("<-")
    assert "data.packing" not in draft_of("llamafactory", {**BARE, "packing": True, "neat_packing": True}).notes
