"""Configs of TRL's commands: whole ones, and each key by itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from scaleup.config.convert import TRAINERS, trainer_of
from scaleup.config.stages.dpo import DPOConfig
from scaleup.config.stages.reward import RewardConfig
from scaleup.config.stages.sft import SFTConfig
from scaleup.errors import ScaleupError
from tests.unit.config.convert.converted import draft_of, mapped, outcome, written

WHOLE: dict[str, Any] = {
    "model_name_or_path": "acme/small-1b",
    "dataset_name": "acme/talks",
    "dataset_config": "en",
    "eval_strategy": "steps",
    "eval_steps": 25,
    "output_dir": "out/first",
    "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 2,
    "max_steps": 100,
    "packing": True,
    "use_peft": True,
    "lora_target_modules": "all-linear",
    "load_in_4bit": True,
    "report_to": "wandb",
    "num_processes": 4,
    "accelerate_config": "zero2",
    "push_to_hub": True,
    "hub_token": "hf_secret",
    "eos_token": "<|im_end|>",
}


def test_a_whole_config(tmp_path: Path) -> None:
    text, config = written(WHOLE, tmp_path)
    assert isinstance(config, SFTConfig)
    assert (config.name, config.model.path, config.quantization) == ("first", "acme/small-1b", "4bit")
    data, train = config.data, config.train
    assert [each.model_dump(exclude_unset=True) for each in data.train or []] == [
        {"path": "acme/talks", "split": "train", "name": "en"}
    ]
    assert [each.split for each in data.validation or []] == ["test"]
    assert (data.messages, data.train_on, data.max_length, data.packing) == ("messages", "all", 1024, True)
    assert (train.max_steps, train.num_train_epochs, train.learning_rate) == (100, None, 2e-5)
    assert (train.eval_steps, train.save_steps, train.logging_steps, train.seed) == (25, 500, 10, 42)
    assert config.adapter is not None
    assert config.adapter.model_dump(exclude_unset=True) == {
        "type": "lora",
        "target_modules": "all-linear",
        "r": 16,
        "lora_alpha": 32.0,
        "lora_dropout": 0.05,
    }
    assert (config.mixed_precision, config.gradient_checkpointing, config.report_to) == ("bf16", True, ["wandb"])
    assert config.parallel.num_processes == 4 and "hf_secret" not in text
    different = text.partition("# Without a counterpart")[2].partition("# Not needed here")[0]
    assert "accelerate_config: zero2 -> set parallel.strategy" in different and "eos_token" in different


def test_every_key_stands_somewhere() -> None:
    draft = draft_of("trl-sft", WHOLE)
    told = {*draft.came_from.values(), *(left.key for left in draft.left), *draft.off}
    assert set(WHOLE) - told == {"dataset_config"}, "it is the source's"


@pytest.mark.parametrize(
    ("raw", "command"),
    [
        ({"dataset_name": "d", "beta": 0.1}, "dpo"),
        ({"dataset_name": "d", "beta": 0.1, "desirable_weight": 1.0}, "kto"),
        ({"dataset_name": "d", "center_rewards_coefficient": 0.01}, "reward"),
        ({"dataset_name": "d"}, "sft"),
        ({"packing": True, "use_peft": True, "lora_r": 8}, "sft"),
    ],
)
def test_the_command_is_told_by_the_keys(raw: dict[str, Any], command: str) -> None:
    assert trainer_of(raw, Path("x.yaml")).name == f"trl-{command}"


def test_a_file_of_two_trainers_is_refused() -> None:
    with pytest.raises(ScaleupError, match=r"has keys of axolotl and of trl-sft -> say which it is: --from NAME"):
        trainer_of({"base_model": "m", "dataset_name": "d"}, Path("x.yaml"))
    with pytest.raises(ScaleupError, match=r"has keys of llamafactory and of trl-sft"):
        trainer_of({"model_name_or_path": "m", "finetuning_type": "lora", "use_peft": True}, Path("x.yaml"))


def test_a_guess_is_marked() -> None:
    draft = draft_of("trl-sft", {**BARE, "dataset_name": "acme/d"})
    assert draft.notes["stage"].startswith("<-") and draft.notes["data.train"].startswith("<-")
    draft = draft_of("trl-sft", {**BARE, "dataset_name": "acme/d", "dataset_text_field": "body"})
    assert "stage" not in draft.notes and "data.train" not in draft.notes


def test_the_other_commands(tmp_path: Path) -> None:
    pairs = {**BARE, "dataset_name": "acme/pairs"}
    _, config = written({**pairs, "beta": 0.2, "loss_type": ["ipo"]}, tmp_path)
    assert isinstance(config, DPOConfig) and (config.dpo.loss, config.dpo.beta) == ("ipo", 0.2)
    assert (config.data.prompt, config.data.chosen, config.train.learning_rate) == ("{prompt}", "{chosen}", 1e-6)
    _, config = written({**pairs, "loss_type": "kto"}, tmp_path, trainer="trl-kto")
    assert isinstance(config, DPOConfig) and (config.dpo.loss, config.data.label) == ("kto", "label")
    _, config = written(pairs, tmp_path, trainer="trl-reward")
    assert isinstance(config, RewardConfig) and config.train.learning_rate == 1e-4


BARE: dict[str, Any] = {"model_name_or_path": "m"}
LORA = {**BARE, "use_peft": True}
D = {**BARE, "dataset_name": "rows.jsonl"}
HUB = {**BARE, "dataset_name": "acme/d", "dataset_text_field": "text"}
Expected = dict[str, Any]
SOURCE = {"path": "acme/d", "split": "train"}
CASES: dict[str, tuple[str, dict[str, Any], Any, Expected]] = {
    "model_name_or_path": ("sft", BARE, "other/m", {"model.path": "other/m"}),
    "model_revision": ("sft", BARE, "abc", {"model.revision": "abc"}),
    "trust_remote_code": ("sft", BARE, True, {"model.trust_remote_code": True}),
    "dataset_name": ("sft", BARE, "rows.jsonl", {"data.train": "rows.jsonl"}),
    "dataset_config": ("sft", HUB, "en", {"data.train": [{**SOURCE, "name": "en"}]}),
    "dataset_train_split": ("sft", HUB, "train[:9%]", {"data.train": [{**SOURCE, "split": "train[:9%]"}]}),
    "dataset_test_split": (
        "sft",
        {**HUB, "eval_strategy": "steps"},
        "dev",
        {"data.validation": [{**SOURCE, "split": "dev"}]},
    ),
    "dataset_streaming": ("sft", D, True, {"data.streaming": True}),
    "datasets": ("sft", BARE, [{"path": "a.jsonl"}, {"path": "b.jsonl"}], {"data.train": ["a.jsonl", "b.jsonl"]}),
    "streaming": ("sft", D, True, {"data.streaming": True}),
    "test_split_size": ("sft", BARE, 0.1, {"data.validation_fraction": 0.1}),
    "dataset_text_field": ("sft", D, "body", {"data.text": "{body}"}),
    "chat_template_path": ("sft", BARE, "chat.jinja", {"data.chat_template": "chat.jinja"}),
    "max_length": ("sft", BARE, 100, {"data.max_length": 100}),
    "packing": ("sft", BARE, True, {"data.packing": True}),
    "completion_only_loss": ("sft", BARE, False, {"data.completion_only_loss": False}),
    "assistant_only_loss": (
        "sft",
        {**BARE, "dataset_name": "acme/d"},
        True,
        {"data.train_on": "assistant"},
    ),
    "use_peft": (
        "sft",
        BARE,
        True,
        {"adapter.type": "lora", "adapter.r": 16, "adapter.lora_alpha": 32.0, "adapter.lora_dropout": 0.05},
    ),
    "lora_r": ("sft", LORA, 4, {"adapter.r": 4}),
    "lora_alpha": ("sft", LORA, 4, {"adapter.lora_alpha": 4.0}),
    "lora_dropout": ("sft", LORA, 0.1, {"adapter.lora_dropout": 0.1}),
    "lora_target_modules": ("sft", LORA, ["q_proj"], {"adapter.target_modules": ["q_proj"]}),
    "lora_modules_to_save": ("sft", LORA, ["lm_head"], {"adapter.modules_to_save": ["lm_head"]}),
    "use_rslora": ("sft", LORA, True, {"adapter.use_rslora": True}),
    "use_dora": ("sft", LORA, True, {"adapter.use_dora": True}),
    "load_in_8bit": ("sft", LORA, True, {"quantization": "8bit"}),
    "load_in_4bit": ("sft", LORA, True, {"quantization": "4bit"}),
    "num_train_epochs": ("sft", BARE, 2, {"train.num_train_epochs": 2.0}),
    "max_steps": ("sft", BARE, 50, {"train.max_steps": 50}),
    "learning_rate": ("sft", BARE, "3e-5", {"train.learning_rate": 3e-5}),
    "lr_scheduler_type": ("sft", BARE, "cosine", {"train.lr_scheduler_type": "cosine"}),
    "warmup_steps": ("sft", BARE, 5, {"train.warmup_steps": 5}),
    "warmup_ratio": ("sft", BARE, 0.2, {"train.warmup_ratio": 0.2}),
    "optim": ("sft", BARE, "paged_adamw_8bit", {"train.optimizer": "adamw"}),
    "weight_decay": ("sft", BARE, 0.1, {"train.weight_decay": 0.1}),
    "adam_beta1": ("sft", BARE, 0.8, {"train.adam_beta1": 0.8}),
    "adam_beta2": ("sft", BARE, 0.95, {"train.adam_beta2": 0.95}),
    "adam_epsilon": ("sft", BARE, "1e-6", {"train.adam_epsilon": 1e-6}),
    "max_grad_norm": ("sft", BARE, 0.3, {"train.max_grad_norm": 0.3}),
    "per_device_train_batch_size": ("sft", BARE, 3, {"train.per_device_train_batch_size": 3}),
    "per_device_eval_batch_size": ("sft", BARE, 3, {"train.per_device_eval_batch_size": 3}),
    "gradient_accumulation_steps": ("sft", BARE, 5, {"train.gradient_accumulation_steps": 5}),
    "logging_steps": ("sft", BARE, 1, {"train.logging_steps": 1}),
    "eval_steps": ("sft", BARE, 20, {"train.eval_steps": 20}),
    "save_steps": ("sft", BARE, 20, {"train.save_steps": 20}),
    "save_total_limit": ("sft", BARE, 1, {"train.save_total_limit": 1}),
    "eval_strategy": ("sft", BARE, "epoch", {}),
    "save_strategy": ("sft", BARE, "epoch", {}),
    "load_best_model_at_end": ("sft", BARE, True, {"train.load_best_model_at_end": True}),
    "metric_for_best_model": ("sft", BARE, "eval_loss", {"train.metric_for_best_model": "loss"}),
    "greater_is_better": ("sft", BARE, False, {"train.greater_is_better": False}),
    "group_by_length": ("sft", BARE, True, {"train.group_by_length": True}),
    "seed": ("sft", BARE, 7, {"train.seed": 7}),
    "bf16": ("sft", BARE, False, {"mixed_precision": "no"}),
    "fp16": ("sft", BARE, True, {"mixed_precision": "fp16"}),
    "gradient_checkpointing": ("sft", BARE, False, {"gradient_checkpointing": False}),
    "report_to": ("sft", BARE, ["mlflow"], {"report_to": ["mlflow"]}),
    "num_processes": ("sft", BARE, 4, {"parallel.num_processes": 4}),
    "num_machines": ("sft", BARE, 2, {"parallel.num_nodes": 2}),
    "deepspeed": ("sft", BARE, "zero2.json", {"parallel.strategy": "zero2"}),
    "fsdp": ("sft", BARE, "full_shard", {"parallel.strategy": "fsdp2"}),
    "fsdp_config": ("sft", BARE, {"fsdp_version": 2}, {"parallel.strategy": "fsdp2"}),
    "beta": ("dpo", BARE, 0.3, {"dpo.beta": 0.3}),
    "loss_type": ("dpo", BARE, ["sigmoid", "sft"], {"dpo.loss": ["dpo", "sft"]}),
    "loss_weights": ("dpo", {**BARE, "loss_type": ["ipo", "sft"]}, [1.0, 0.5], {"dpo.loss_weights": [1.0, 0.5]}),
    "label_smoothing": ("dpo", {**BARE, "loss_type": "robust"}, 0.1, {"dpo.label_smoothing": 0.1}),
    "desirable_weight": ("kto", BARE, 0.5, {"dpo.desirable_weight": 0.5}),
    "undesirable_weight": ("kto", BARE, 0.5, {"dpo.undesirable_weight": 0.5}),
    "precompute_ref_log_probs": ("dpo", BARE, True, {"dpo.reference": "cached"}),
    "center_rewards_coefficient": ("reward", BARE, 0.01, {"reward.center_coefficient": 0.01}),
    "output_dir": ("sft", BARE, "out/x", {"name": "x"}),
}
"""Each key -> the command, the config around it, its value, and what it becomes. Nothing: it is listed at the end."""


@pytest.mark.parametrize("key", CASES)
def test_a_key(key: str) -> None:
    command, around, value, expected = CASES[key]
    changed, why = outcome(f"trl-{command}", around, key, value)
    assert changed == expected
    assert why is not None or expected


def test_every_rule_has_a_case() -> None:
    for name in TRAINERS:
        if name.startswith("trl-"):
            assert mapped(name) == set(CASES)


def test_a_loss_of_another_kind_is_listed() -> None:
    for command, raw in (
        ("sft", {"loss_type": "dft"}),
        ("dpo", {"loss_type": ["apo_zero"]}),
        ("dpo", {"label_smoothing": 0.1}),
    ):
        _, why = outcome(f"trl-{command}", BARE, *next(iter(raw.items())))
        assert why is not None


@pytest.mark.parametrize("raw", [{"reward_funcs": ["accuracy_reward"]}, {"num_generations": 8}])
def test_a_kind_of_run_that_is_not_converted(raw: dict[str, Any]) -> None:
    with pytest.raises(ScaleupError, match="is not converted -> start with scaleup init rl"):
        draft_of("trl-sft", {**BARE, **raw})
