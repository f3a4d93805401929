"""What a plan says of a mixture of experts."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from scaleup.config.schema import ModelConfig
from scaleup.describe.model import model_facts
from scaleup.errors import ScaleupError
from scaleup.plan.facts import Experts
from scaleup.plan.types import Plan
from tests.fake_facts import FACTS

EXPERTS = Experts(num_experts=8, num_experts_per_tok=2, num_parameters=600, router_aux_loss_coef=0.02)


def test_facts_are_those_of_the_files() -> None:
    """Of tiny-mixtral: 2 layers of 4 experts of three matrices, 64 by 128."""
    facts = model_facts(ModelConfig(path="builtin:tiny-mixtral"))
    assert facts.experts == Experts(
        num_experts=4, num_experts_per_tok=2, num_parameters=2 * 4 * 3 * 64 * 128, router_aux_loss_coef=0.02
    )
    assert facts.num_active_parameters == facts.num_parameters - 2 * 2 * 3 * 64 * 128
    assert model_facts(ModelConfig(path="builtin:tiny-llama")).experts is None


def test_what_the_router_learns_from_is_said(plan: Callable[..., Plan]) -> None:
    mixture = FACTS.model_copy(update={"experts": EXPERTS})
    notes = plan(facts=mixture).notes
    assert "the router's auxiliary loss is added, times 0.02 (the model's router_aux_loss_coef)" in notes
    adapted = plan({"adapter": {"type": "lora"}}, facts=mixture).notes
    assert any("routers and experts, whose weights are stacked, stay frozen" in note for note in adapted)
    balanced = mixture.model_copy(update={"experts": EXPERTS.model_copy(update={"router_aux_loss_coef": None})})
    assert not any("router" in note for note in plan(facts=balanced).notes)


def test_an_encoder_decoder_of_experts_is_refused(plan: Callable[..., Plan]) -> None:
    """Its two routers have losses of their own, which are not added."""
    switch = FACTS.model_copy(update={"experts": EXPERTS, "task": "seq2seq_lm", "architecture": "SwitchTransformers"})
    with pytest.raises(ScaleupError, match=r"model\.path: the auxiliary losses of SwitchTransformers's two routers"):
        plan({"data.text": None, "data.prompt": "{text}", "data.completion": "{text}"}, facts=switch)
