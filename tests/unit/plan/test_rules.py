"""What only a model's own files can tell, from facts that a test can choose."""

from __future__ import annotations

from typing import Any

import pytest

from scaleup.config.load import load_mapping
from scaleup.plan.facts import ModelFacts
from scaleup.plan.stages import planner_of
from tests.fake_facts import FACTS

LLAMA = FACTS.model_copy(update={"vocab_size": 100, "tokenizer_size": 100, "max_positions": 64})
T5 = LLAMA.model_copy(update={"task": "seq2seq_lm", "model_type": "t5", "max_positions": None})
PAIR = {"prompt": "{a}", "completion": "{b}", "max_length": 64}
CHAT = {"messages": "turns", "max_length": 64}


@pytest.mark.parametrize(
    ("facts", "data", "precision", "where"),
    [
        (LLAMA, PAIR, "no", []),
        (LLAMA, {**PAIR, "max_length": 65}, "no", ["data.max_length"]),
        (LLAMA.model_copy(update={"tokenizer_size": 101}), PAIR, "no", ["model.tokenizer"]),
        (LLAMA, CHAT, "no", []),
        (LLAMA.model_copy(update={"has_chat_template": False}), CHAT, "no", ["data.messages"]),
        (T5, {**PAIR, "max_length": 4096}, "bf16", []),
        (T5, PAIR, "fp16", ["mixed_precision"]),
        (T5, CHAT, "no", ["data.messages"]),
        (T5, {"text": "{a}"}, "no", ["data.text"]),
    ],
)
def test_what_the_model_cannot(facts: ModelFacts, data: dict[str, Any], precision: str, where: list[str]) -> None:
    raw = {"stage": "sft", "name": "x", "model": {"path": "m"}, "train": {"max_steps": 1}, "mixed_precision": precision}
    config = load_mapping({**raw, "data": {"train": "rows.jsonl", **data}}).config
    assert config is not None
    assert [problem.where for problem in planner_of(config).all_facts_problems(config, facts, "model")] == where


@pytest.mark.parametrize(
    ("facts", "known"),
    [(LLAMA, True), (LLAMA.model_copy(update={"model_type": "gpt2"}), False), (T5, False)],
)
def test_liger_knows_some_families(facts: ModelFacts, known: bool) -> None:
    """Of others its own function says nothing, and changes nothing."""
    raw = {"stage": "sft", "name": "x", "model": {"path": "m"}, "train": {"max_steps": 1}, "use_liger_kernel": True}
    config = load_mapping({**raw, "data": {"train": "rows.jsonl", **PAIR}}).config
    assert config is not None
    problems = planner_of(config).all_facts_problems(config, facts, "model")
    assert [problem.where for problem in problems] == ([] if known else ["use_liger_kernel"])
