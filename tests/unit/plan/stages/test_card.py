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


@pytest.mark.parametrize("change", [{"vocab_size": 7}, {"tokenizer_size": 7}])
def test_another_vocabulary(change: dict[str, int]) -> None:
    (found,) = problems(**change)
    assert found.startswith("variants.small: ")
    assert f"{FACTS.vocab_size} ({FACTS.tokenizer_size})" in found


def test_too_few_positions() -> None:
    (found,) = problems(max_positions=159)
    assert found.startswith("card.prompt_tokens: 128 and card.new_tokens 32 exceed variants.small's 159")
