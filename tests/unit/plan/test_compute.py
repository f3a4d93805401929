"""Operations of a run by closed forms, and against what torch counts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from scaleup.plan.compute import flops_a_token
from scaleup.plan.facts import Experts, ModelFacts
from scaleup.plan.types import Plan
from tests.fake_facts import FACTS

KNOWN = FACTS.model_copy(update={"num_trainable_parameters": 1000, "num_lookup_parameters": 100, "attention_width": 30})


def test_by_hand() -> None:
    assert flops_a_token(KNOWN, 10, False) == 6 * 900 + 12 * 30 * 10
    assert flops_a_token(KNOWN, 10, True) == 8 * 900 + 16 * 30 * 10


def test_frozen_parameters_have_no_gradient_of_their_own() -> None:
    frozen = KNOWN.model_copy(update={"num_trainable_parameters": 0})
    assert flops_a_token(frozen, 10, False) == 4 * 900 + 12 * 30 * 10


def test_a_token_goes_through_a_few_experts() -> None:
    """Of 1000 parameters 600 are those of 4 experts, of which a token goes through one."""
    experts = Experts(num_experts=4, num_experts_per_tok=1, num_parameters=600)
    facts = KNOWN.model_copy(update={"experts": experts})
    assert facts.num_active_parameters == 550
    assert flops_a_token(facts, 10, False) == 6 * 450 + 12 * 30 * 10


def test_is_what_torch_counts() -> None:
    """Plain attention, which computes both halves of the square as the formula does. Norms are left out."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode
    from transformers import AutoModelForCausalLM, LlamaConfig

    config = LlamaConfig(
        vocab_size=301, hidden_size=64, intermediate_size=128, num_hidden_layers=3, num_attention_heads=4,
        attn_implementation="eager",
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config)
    ids = torch.zeros((2, 32), dtype=torch.long)
    with FlopCounterMode(display=False) as counter:
        model(input_ids=ids).logits.sum().backward()
    count = sum(parameter.numel() for parameter in model.parameters())
    facts = FACTS.model_copy(
        update={
            "num_parameters": count,
            "num_trainable_parameters": count,
            "num_lookup_parameters": 301 * 64,
            "attention_width": 3 * 64,
        }
    )
    assert flops_a_token(facts, 32, False) * 64 == pytest.approx(counter.get_total_flops(), rel=0.01)


def test_of_a_run(plan: Callable[..., Plan]) -> None:
    """4 steps of 8 rows of 512 tokens."""
    compute = plan(facts=KNOWN).compute
    assert compute is not None
    assert compute.tokens == 4 * 8 * 512
    assert compute.total_flops == compute.tokens * (6 * 900 + 12 * 30 * 512)
    assert compute.hours is None


@pytest.mark.parametrize(
    ("changes", "tokens"),
    [
        ({"train.tokens_per_device": 1000}, 4 * 1000),
        ({"data.packing": True, "train.max_steps": None, "train.num_train_epochs": 2}, 2 * 10 * 512),
        ({"data.streaming": True}, 4 * 8 * 512),
    ],
    ids=str,
)
def test_tokens_at_most(plan: Callable[..., Plan], changes: dict[str, Any], tokens: int) -> None:
    found = plan(changes, facts=KNOWN).compute
    assert found is not None and found.tokens == tokens


def test_facts_of_a_model_that_does_not_train_have_no_compute(plan: Callable[..., Plan], facts: ModelFacts) -> None:
    changes = {"stage": "evaluate", "data.test": "rows.jsonl", "data.train": None, "train": None}
    assert plan(changes, facts=facts).compute is None
