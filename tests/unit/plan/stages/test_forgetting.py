"""The plan of a term against forgetting: what it keeps and what it computes."""

from __future__ import annotations

from typing import Any

import pytest

from scaleup.config.load import load_mapping
from scaleup.config.stages.sft import SFTConfig
from scaleup.plan.compute import Rate, flops_a_token, flops_forward
from scaleup.plan.memory import checkpoint_copy
from scaleup.plan.stages.sft import PLANNER
from scaleup.plan.types import BatchPlan
from tests.cli import differing
from tests.fake_facts import FACTS
from tests.unit.plan.conftest import RAW

FACT = {"model": FACTS}
BATCH = BatchPlan(
    micro_batch=2, accumulation=1, global_batch=2, num_train_rows=10, num_steps=5, unit="rows", tokens=None
)


def config_of(kind: str | None, **changes: Any) -> SFTConfig:
    term = {"regularization": {"type": kind, "weight": 1}} if kind else {}
    config = load_mapping(differing(RAW, {**term, **changes})).config
    assert isinstance(config, SFTConfig)
    return config


@pytest.mark.parametrize("strategy", ["single", "ddp", "zero1", "zero2", "zero3", "fsdp2"])
@pytest.mark.parametrize(("kind", "copies"), [("l2sp", 1), ("ewc", 2)])
def test_copies_are_kept_where_the_optimizer_keeps_its_moments(strategy: str, kind: str, copies: int) -> None:
    """Of as many bytes as a moment, on every rank of a strategy, also for an optimizer that has none."""
    momentum = {"train.optimizer": "sgd", "train.momentum": 0.9}
    one, none, held = (
        PLANNER.memory(config, FACT, strategy)
        for config in (
            config_of(None, **momentum),
            config_of(None, **{"train.optimizer": "sgd"}),
            config_of(kind, **{"train.optimizer": "sgd"}),
        )
    )
    assert held.optimizer - none.optimizer == copies * (one.optimizer - none.optimizer) > 0
    assert (held.weights, held.gradients, held.reference) == (none.weights, none.gradients, 0)


@pytest.mark.parametrize("kind", ["l2sp", "ewc"])
def test_copies_are_in_no_checkpoint(kind: str) -> None:
    sizes = {checkpoint_copy(config_of(each), FACTS, "ddp", None) for each in (None, kind)}
    assert len(sizes) == 1


def test_a_frozen_copy_stands_beside_the_model() -> None:
    memory = PLANNER.memory(config_of("kl"), FACT, "ddp")
    alone = PLANNER.memory(config_of(None), FACT, "ddp")
    assert (memory.weights, memory.reference, memory.optimizer) == (alone.weights, alone.weights, alone.optimizer)
    assert memory.buffers - alone.buffers == alone.gradients, "old rows' gradients are added up beside DDP's buckets"
    assert PLANNER.trained(config_of("kl"), FACT).num_parameters == 2 * FACTS.num_parameters


def test_an_old_row_costs_as_much_as_a_new_one_and_the_copys_reading() -> None:
    once, forward = flops_a_token(FACTS, 512, False), flops_forward(FACTS, 512)
    for kind, wanted in (("ewc", 5 * 2 * 512 * once), ("kl", 5 * 2 * 512 * (2 * once + forward))):
        found = PLANNER.compute(config_of(kind), FACT, BATCH, Rate())
        assert found is not None and found.total_flops == wanted


@pytest.mark.parametrize(("changes", "is_noted"), [({}, False), ({"mixed_precision": "bf16"}, True)])
def test_what_no_test_trains_is_noted(changes: dict[str, Any], is_noted: bool) -> None:
    assert bool(PLANNER.untested_notes(config_of("ewc", **changes), "ddp")) == is_noted
    assert not PLANNER.untested_notes(config_of(None, **changes), "ddp")


def test_a_mixture_of_experts_has_no_copy_beside_it() -> None:
    from scaleup.plan.facts import Experts

    experts = Experts(num_experts=4, num_experts_per_tok=1, num_parameters=60)
    facts = FACTS.model_copy(update={"experts": experts})
    found = {kind: [p.where for p in PLANNER.facts_problems(config_of(kind), facts, "model")] for kind in ("ewc", "kl")}
    assert "regularization.type" in found["kl"] and "regularization.type" not in found["ewc"]
