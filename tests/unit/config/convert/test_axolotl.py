"""Configs of axolotl: a whole one, and each key by itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from scaleup.config.stages.dpo import DPOConfig
from scaleup.config.stages.reward import RewardConfig
from scaleup.config.stages.sft import SFTConfig
from scaleup.errors import ScaleupError
from tests.unit.config.convert.converted import draft_of, mapped, outcome, written

WHOLE: dict[str, Any] = {
    "base_model": "acme/small-1b",
    "load_in_4bit": True,
    "adapter": "qlora",
    "lora_r": 16,
    "lora_alpha": 32,
    "lora_target_linear": True,
    "datasets": [{"path": "talks.jsonl", "type": "chat_template", "field_messages": "turns"}],
    "val_set_size": 0.1,
    "output_dir": "./outputs/first try",
    "sequence_len": 2048,
    "sample_packing": True,
    "gradient_accumulation_steps": 4,
    "micro_batch_size": 2,
    "num_epochs": 3,
    "optimizer": "paged_adamw_8bit",
    "learning_rate": "2e-4",
    "bf16": "auto",
    "gradient_checkpointing": True,
    "flash_attention": True,
    "evals_per_epoch": 4,
    "wandb_project": None,
    "hf_use_auth_token": "hf_secret",
    "my_own_key": 3,
    "special_tokens": {"pad_token": "<pad>"},
}
BARE = {"base_model": "m", "learning_rate": 1e-4}
LORA = {**BARE, "adapter": "lora"}
DPO = {**BARE, "rl": "dpo"}
ROWS = [{"path": "a.jsonl", "type": "completion"}]


def test_a_whole_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    _, config = written(WHOLE, tmp_path)
    assert isinstance(config, SFTConfig)
    assert (config.name, config.model.path, config.quantization) == ("first-try", "acme/small-1b", "4bit")
    adapter, data, train = config.adapter, config.data, config.train
    assert adapter is not None
    assert adapter.model_dump(exclude_unset=True) == {
        "type": "lora",
        "r": 16,
        "lora_alpha": 32.0,
        "target_modules": "all-linear",
    }
    assert [each.path for each in data.train or []] == ["talks.jsonl"]
    assert (data.messages, data.max_length, data.packing, data.too_long) == ("turns", 2048, True, "drop")
    assert data.validation_fraction == 0.1
    assert (train.per_device_train_batch_size, train.gradient_accumulation_steps) == (2, 4)
    assert (train.num_train_epochs, train.learning_rate, train.optimizer) == (3.0, 2e-4, "adamw")
    assert (train.lr_scheduler_type, train.warmup_ratio, train.seed) == ("cosine", 0.03, 42), "axolotl's defaults"
    assert (config.mixed_precision, config.gradient_checkpointing) == ("bf16", True)
    assert (config.parallel.strategy, config.parallel.num_processes) == ("auto", 1)


def test_what_has_no_counterpart_is_listed(tmp_path: Path) -> None:
    text, _ = written(WHOLE, tmp_path)
    head, _, tail = text.partition("# Without a counterpart")
    different, _, same = tail.partition("# Not needed here")
    assert "evals_per_epoch: 4 -> set train.eval_steps" in different
    assert "my_own_key: 3 -> is no key of axolotl that is known here" in different
    assert "flash_attention: true" in same and "special_tokens" in same
    assert "hf_use_auth_token: ..." in same and "hf_secret" not in text
    assert "Empty or off there, and not needed here: wandb_project" in same
    assert "paged_adamw_8bit there" in head and "<- as many as there" in head


def test_every_key_stands_somewhere(tmp_path: Path) -> None:
    draft = draft_of("axolotl", WHOLE)
    told = {*draft.came_from.values(), *(left.key for left in draft.left), *draft.off}
    assert set(WHOLE) - told == set()


CASES: dict[str, tuple[dict[str, Any], Any, dict[str, Any]]] = {
    "base_model": (BARE, "other/m", {"model.path": "other/m"}),
    "revision_of_model": (BARE, "abc", {"model.revision": "abc"}),
    "tokenizer_config": (BARE, "other/t", {"model.tokenizer": "other/t"}),
    "trust_remote_code": (BARE, True, {"model.trust_remote_code": True}),
    "tokens": (BARE, ["<a>"], {"model.new_tokens": ["<a>"]}),
    "special_tokens": (BARE, {"eos_token": "</s>"}, {}),
    "adapter": (BARE, "qlora", {"adapter.type": "lora", "quantization": "4bit"}),
    "load_in_8bit": (LORA, True, {"quantization": "8bit"}),
    "load_in_4bit": (LORA, True, {"quantization": "4bit"}),
    "lora_model_dir": (LORA, "runs/a", {"adapter.path": "runs/a"}),
    "lora_r": (LORA, 4, {"adapter.r": 4}),
    "lora_alpha": (LORA, 16, {"adapter.lora_alpha": 16.0}),
    "lora_dropout": (LORA, 0.1, {"adapter.lora_dropout": 0.1}),
    "lora_target_modules": (LORA, ["q_proj"], {"adapter.target_modules": ["q_proj"]}),
    "lora_target_linear": (
        {**LORA, "lora_target_modules": ["q_proj"]},
        True,
        {"adapter.target_modules": "all-linear"},
    ),
    "lora_modules_to_save": (LORA, ["lm_head"], {"adapter.modules_to_save": ["lm_head"]}),
    "peft_use_dora": (LORA, True, {"adapter.use_dora": True}),
    "peft_use_rslora": (LORA, True, {"adapter.use_rslora": True}),
    "datasets": (BARE, ROWS, {"data.train": "a.jsonl", "data.text": "{text}"}),
    "test_datasets": ({**BARE, "datasets": ROWS}, ROWS, {"data.validation": "a.jsonl"}),
    "pretraining_dataset": (
        BARE,
        "acme/books",
        {"data.train": [{"path": "acme/books", "split": "train"}], "data.text": "{text}", "data.streaming": True},
    ),
    "val_set_size": (BARE, 0.2, {"data.validation_fraction": 0.2}),
    "sequence_len": (BARE, 100, {"data.max_length": 100}),
    "excess_length_strategy": (BARE, "raise", {"data.too_long": "error"}),
    "sample_packing": (BARE, True, {"data.packing": True}),
    "streaming": (BARE, True, {"data.streaming": True}),
    "shuffle_merged_datasets": (BARE, False, {"data.shuffle": False}),
    "train_on_inputs": (BARE, True, {"data.completion_only_loss": False, "data.train_on": "all"}),
    "chat_template": (BARE, "chatml", {}),
    "chat_template_jinja": (BARE, "chat.jinja", {"data.chat_template": "chat.jinja"}),
    "num_epochs": (BARE, 2, {"train.num_train_epochs": 2.0}),
    "max_steps": (BARE, 50, {"train.max_steps": 50}),
    "learning_rate": (BARE, "3e-5", {"train.learning_rate": 3e-5}),
    "lr_scheduler": (BARE, "linear", {"train.lr_scheduler_type": "linear"}),
    "warmup_steps": (BARE, 7, {"train.warmup_steps": 7}),
    "warmup_ratio": (BARE, 0.2, {"train.warmup_ratio": 0.2}),
    "optimizer": (BARE, "sgd", {"train.optimizer": "sgd"}),
    "weight_decay": (BARE, 0.1, {"train.weight_decay": 0.1}),
    "adam_beta1": (BARE, 0.8, {"train.adam_beta1": 0.8}),
    "adam_beta2": (BARE, 0.95, {"train.adam_beta2": 0.95}),
    "adam_epsilon": (BARE, "1e-6", {"train.adam_epsilon": 1e-6}),
    "max_grad_norm": (BARE, 0.3, {"train.max_grad_norm": 0.3}),
    "micro_batch_size": (BARE, 3, {"train.per_device_train_batch_size": 3}),
    "eval_batch_size": (BARE, 3, {"train.per_device_eval_batch_size": 3}),
    "gradient_accumulation_steps": (BARE, 5, {"train.gradient_accumulation_steps": 5}),
    "batch_size": ({**BARE, "micro_batch_size": 2}, 8, {"train.gradient_accumulation_steps": 4}),
    "group_by_length": (BARE, True, {"train.group_by_length": True}),
    "eval_steps": (BARE, 20, {"train.eval_steps": 20}),
    "save_steps": (BARE, 20, {"train.save_steps": 20}),
    "save_total_limit": (BARE, 1, {"train.save_total_limit": 1}),
    "logging_steps": (BARE, 10, {"train.logging_steps": 10}),
    "eval_strategy": (BARE, "epoch", {}),
    "save_strategy": (BARE, "epoch", {}),
    "early_stopping_patience": (BARE, 2, {"train.early_stopping_patience": 2}),
    "load_best_model_at_end": (BARE, True, {"train.load_best_model_at_end": True}),
    "metric_for_best_model": (BARE, "eval_loss", {"train.metric_for_best_model": "loss"}),
    "greater_is_better": (BARE, False, {"train.greater_is_better": False}),
    "seed": (BARE, 7, {"train.seed": 7}),
    "bf16": (BARE, False, {"mixed_precision": "no"}),
    "fp16": (BARE, True, {"mixed_precision": "fp16"}),
    "gradient_checkpointing": (BARE, "offload", {"gradient_checkpointing": True}),
    "world_size": (BARE, 4, {"parallel.num_processes": 4}),
    "deepspeed": (
        BARE,
        "deepspeed_configs/zero3_bf16_cpuoffload_all.json",
        {"parallel.strategy": "zero3", "parallel.offload_optimizer": True, "parallel.offload_parameters": True},
    ),
    "fsdp": (BARE, ["full_shard", "auto_wrap"], {"parallel.strategy": "fsdp2"}),
    "fsdp_config": (BARE, {"reshard_after_forward": True}, {"parallel.strategy": "fsdp2"}),
    "rl_beta": (DPO, 0.3, {"dpo.beta": 0.3}),
    "orpo_alpha": ({**BARE, "rl": "orpo"}, 0.2, {"dpo.beta": 0.2}),
    "simpo_gamma": ({**BARE, "rl": "simpo"}, 1.0, {"dpo.simpo_gamma": 1.0}),
    "cpo_alpha": ({**BARE, "rl": "simpo"}, 0.5, {"dpo.cpo_alpha": 0.5}),
    "kto_desirable_weight": ({**BARE, "rl": "kto"}, 0.2, {"dpo.desirable_weight": 0.2}),
    "kto_undesirable_weight": ({**BARE, "rl": "kto"}, 0.2, {"dpo.undesirable_weight": 0.2}),
    "dpo_loss_type": (DPO, ["sigmoid", "sft"], {"dpo.loss": ["dpo", "sft"]}),
    "dpo_loss_weights": ({**DPO, "dpo_loss_type": ["sigmoid", "sft"]}, [1.0, 0.5], {"dpo.loss_weights": [1.0, 0.5]}),
    "dpo_label_smoothing": (DPO, 0.1, {}),
    "precompute_ref_log_probs": (DPO, True, {"dpo.reference": "cached"}),
    "center_rewards_coefficient": ({**BARE, "reward_model": True}, 0.01, {"reward.center_coefficient": 0.01}),
    "wandb_project": (BARE, "mine", {"report_to": ["wandb"]}),
    "use_wandb": (BARE, True, {"report_to": ["wandb"]}),
    "use_mlflow": (BARE, True, {"report_to": ["mlflow"]}),
    "use_comet": (BARE, True, {"report_to": ["comet_ml"]}),
    "use_swanlab": (BARE, True, {"report_to": ["swanlab"]}),
    "rl": (BARE, "ipo", {"stage": "dpo", "dpo.loss": "ipo"}),
    "reward_model": (BARE, True, {"stage": "reward"}),
    "output_dir": (BARE, "out/x", {"name": "x"}),
}
"""Each key -> the config around it, its value, and what it becomes. Nothing: it is listed at the end."""


@pytest.mark.parametrize("key", CASES)
def test_a_key(key: str) -> None:
    around, value, expected = CASES[key]
    changed, why = outcome("axolotl", around, key, value)
    assert changed == expected
    assert why is not None or expected


def test_every_rule_has_a_case() -> None:
    assert mapped("axolotl") == set(CASES)


def test_of_two_ends_the_trainers_own_one_holds() -> None:
    values = draft_of("axolotl", {**BARE, "num_epochs": 3, "max_steps": 100, "warmup_steps": 5}).values
    assert "train.num_train_epochs" not in values and values["train.max_steps"] == 100
    assert "train.warmup_ratio" not in values and values["train.warmup_steps"] == 5


def test_a_strategy_that_holds_no_quantized_base_becomes_one_that_does() -> None:
    values = draft_of("axolotl", {**BARE, "adapter": "qlora", "fsdp": ["full_shard"]}).values
    assert (values["parallel.strategy"], values["quantization"]) == ("zero3", "4bit")


def test_without_an_adapter_its_keys_are_listed() -> None:
    draft = draft_of("axolotl", {**BARE, "lora_r": 8})
    assert "adapter.r" not in draft.values
    assert [(left.key, left.why) for left in draft.left] == [("lora_r", "no adapter is trained")]


def test_what_our_own_config_refuses_is_listed() -> None:
    draft = draft_of("axolotl", {**BARE, "learning_rate": -1, "save_steps": "often"})
    whys = {left.key: left.why for left in draft.left}
    assert "should be greater than 0" in whys["learning_rate"] and "not of the form" in whys["save_steps"]
    assert "train.learning_rate" not in draft.values


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ({"type": "alpaca"}, {"template": "alpaca"}),
        ({"type": "alpaca:phi"}, {"template": "alpaca"}),
        ({"type": "gpteacher"}, {"template": "alpaca", "columns": {"output": "response"}}),
        ({"type": "completion", "field": "body"}, {"text": "{body}"}),
        ({"type": "chat_template"}, {"messages": "messages"}),
        ({"type": "chat_template", "field_tools": "tools"}, {"messages": "messages", "tools": "tools"}),
        (
            {"type": {"field_instruction": "q", "field_output": "a", "format": "Q: {instruction}\nA: "}},
            {"prompt": "Q: {q}\nA: ", "completion": "{a}"},
        ),
        ({"type": "reflection"}, {}),
    ],
)
def test_a_type_of_rows(entry: dict[str, Any], expected: dict[str, Any]) -> None:
    draft = draft_of("axolotl", {**BARE, "datasets": [{"path": "rows.jsonl", **entry}]})
    found = {key: value for key, value in draft.values.items() if key.startswith("data.")}
    assert found.pop("data.train") == "rows.jsonl"
    assert {f"data.{key}": value for key, value in expected.items()}.items() <= found.items()
    assert expected or draft.notes["data.train"].startswith("<- state the format")


def test_sources_of_several_formats_state_them_themselves(tmp_path: Path) -> None:
    rows = [
        {"path": "a.jsonl", "type": "completion"},
        {"path": "json", "data_files": ["b.json"], "type": "chat_template"},
        {"path": "acme/talks", "name": "en", "split": "train[:5%]", "type": "chat_template", "shards": 10},
    ]
    text, config = written({**BARE, "datasets": rows}, tmp_path)
    assert [each.model_dump(exclude_unset=True) for each in config.data.train or []] == [
        {"path": "a.jsonl", "text": "{text}"},
        {"path": "b.json", "messages": "messages"},
        {"path": "acme/talks", "split": "train[:5%]", "name": "en", "messages": "messages"},
    ]
    assert "datasets.2.shards: 10" in text


def test_preferences_keep_their_markup(tmp_path: Path) -> None:
    rows = [{"path": "pairs.jsonl", "type": "chatml.intel"}]
    _, config = written({**DPO, "datasets": rows, "rl_beta": 0.2}, tmp_path)
    assert isinstance(config, DPOConfig)
    assert config.data.prompt == "<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
    assert (config.data.chosen, config.data.rejected) == ("{chosen}<|im_end|>", "{rejected}<|im_end|>")
    rows = [{"path": "talks.jsonl", "type": "chat_template.default", "field_messages": "said"}]
    _, config = written({**DPO, "datasets": rows}, tmp_path)
    assert (config.data.prompt, config.data.chosen) == ("{said}", "{chosen}")


def test_single_responses_and_reward_models(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{"path": "kto.jsonl", "type": "llama3.argilla"}]
    _, config = written({**BARE, "rl": "kto", "datasets": rows}, tmp_path)
    assert isinstance(config, DPOConfig) and config.dpo.loss == "kto"
    assert "{instruction}" in (config.data.prompt or "") and config.data.label == "label"
    own = {"field_prompt": "q", "prompt_format": "<{prompt}>", "field_completion": "a", "field_label": "ok"}
    _, config = written({**BARE, "rl": "kto", "datasets": [{"path": "kto.jsonl", "type": own}]}, tmp_path)
    assert (config.data.prompt, config.data.completion, config.data.label) == ("<{q}>", "{a}", "ok")
    rows = [{"path": "pairs.jsonl", "type": "bradley_terry.chat_template"}]
    _, config = written({**BARE, "reward_model": True, "datasets": rows}, tmp_path)
    assert isinstance(config, RewardConfig) and config.data.prompt == "{input}"


@pytest.mark.parametrize("raw", [{"rl": "grpo"}, {"process_reward_model": True}, {"qat": {"group_size": 32}}])
def test_a_kind_of_run_that_is_not_converted(raw: dict[str, Any]) -> None:
    with pytest.raises(ScaleupError, match="is not converted -> "):
        draft_of("axolotl", {**BARE, **raw})
