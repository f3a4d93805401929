"""What a deployment card can compare."""

from __future__ import annotations

from typing import Any

import pytest

from scaleup.config.stages.card import CardConfig
from scaleup.plan.facts import ModelFacts
from scaleup.plan.stages.card import variant_problems
from tests.fake_facts import FACTS

CONFIG = CardConfig.model_validate(
    {
        "stage": "card",
        "name": "card",
        "model": {"path": "a"},
        "variants": {"small": "b"},
        "data": {"test": "rows.jsonl"},
    }
)


def problems(**changes: Any) -> list[str]:
    base: ModelFacts = FACTS.model_copy(update={"max_positions": None})
    found = variant_problems(CONFIG, base.model_copy(update=changes), base, "variants.small")
    return [f"{problem.where}: {problem.what}" for problem in found]


def test_a_variant_of_the_same_model() -> None:
    assert problems(num_parameters=1, hidden_size=8) == []
    assert problems(max_positions=160) == []
    assert problems(vocab_size=FACTS.vocab_size + 61) == [], "padding"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"tokenizer_size": 7, "vocabulary": "b"}, f"7 tokens against {FACTS.tokenizer_size}"),
        ({"vocabulary": "b"}, "the same tokens have different ids"),
    ],
)
def test_another_vocabulary(change: dict[str, Any], said: str) -> None:
    assert problems(**change) == [f"variants.small: its tokenizer is another: {said}"]


def test_too_few_positions() -> None:
    (found,) = problems(max_positions=159)
    assert found.startswith("card.prompt_tokens: 128 and card.new_tokens 32 exceed variants.small's 159")
