"""Which base an adapter was trained on, as far as config.json tells."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from scaleup.config.load import load_mapping
from scaleup.plan.facts import ModelFacts
from scaleup.plan.saved_adapters import base_problems, taken_problems
from tests.unit.plan.conftest import RAW

LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "vocab_size": 259,
    "bos_token_id": 1,
    "transformers_version": "5.0",
}


def problems(folder: Path, facts: ModelFacts, base: dict[str, Any] | None, stage: str) -> list[str]:
    """Of an adapter whose base has this config.json (or is a hub name), put on a LLAMA."""
    for name, config in (("here", LLAMA), ("trained", base)):
        if config is not None:
            (folder / name).mkdir()
            (folder / name / "config.json").write_text(json.dumps(config))
    (folder / "a").mkdir()
    named = str(folder / "trained") if base is not None else "someone/some-model"
    (folder / "a/adapter_config.json").write_text(json.dumps({"base_model_name_or_path": named}))
    more = {"adapter": {"type": "lora", "path": str(folder / "a")}}
    if stage != "sft":
        more = {"stage": stage, "adapters": {"a": str(folder / "a")}, "data": {"test": "rows.jsonl", "text": "{text}"}}
    config = load_mapping(
        {key: value for key, value in (RAW | more).items() if stage == "sft" or key != "train"}
    ).config
    assert config is not None
    found = base_problems(config, facts.model_copy(update={"location": str(folder / "here")}))
    assert {problem.where for problem in found} <= {"adapter.path" if stage == "sft" else "adapters.a"}
    return [problem.what for problem in found]


@pytest.mark.parametrize("stage", ["sft", "evaluate", "generate"])
@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"hidden_size": 128}, "hidden_size is 128, not 64"),
        ({"vocab_size": 300}, "vocab_size is 300, not 259"),
        ({"num_hidden_layers": 3}, "num_hidden_layers is 3, not 2"),
        ({"model_type": "qwen2"}, "model_type is qwen2, not llama"),
        ({"architectures": ["LlamaModel"]}, "architectures is ['LlamaModel'], not ['LlamaForCausalLM']"),
    ],
)
def test_another_base(change: dict[str, Any], what: str, stage: str, folder: Path, facts: ModelFacts) -> None:
    [found] = problems(folder, facts, LLAMA | change, stage)
    assert found.endswith(f"/trained) than builtin:tiny-llama: {what}")


@pytest.mark.parametrize(
    "base",
    [
        LLAMA,
        LLAMA | {"bos_token_id": 7, "transformers_version": "4.1", "no_repeat_ngram_size": 3, "head_dim": 16},
        {"model_type": "llama"},
        None,
    ],
)
def test_what_does_not_differ_is_fine(base: dict[str, Any] | None, folder: Path, facts: ModelFacts) -> None:
    """Another folder with the same model, one that says less, and a hub name, of which nothing is here."""
    assert problems(folder, facts, base, "evaluate") == []


def test_columns_are_called_as_no_key_of_a_row_is() -> None:
    """Whoever scores texts and pairs writes its columns beside these keys."""
    keys = ("prompt", "tools", "reference", "text", "label", "chosen", "rejected", "margin", "scores")
    assert [problem.where for problem in taken_problems(keys, "models")] == [f"models.{key}" for key in keys]
