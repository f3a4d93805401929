"""The peak by closed forms, strategy by strategy; what fits, and what auto makes of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from scaleup.config.load import load_mapping
from scaleup.config.stages.sft import SFTConfig
from scaleup.plan.facts import Footprint
from scaleup.plan.memory import micro_batch_of, predicted_memory, training_memory
from scaleup.plan.strategy import MARGIN
from scaleup.plan.types import MemoryPlan, Plan
from tests.cli import differing
from tests.fake_facts import FACTS
from tests.unit.plan.conftest import RAW

MOMENTS = ((9000, 0), (6000, 2000), (100, 3600))
TRACED = FACTS.model_copy(
    update={"footprints": (Footprint(arithmetic="float32", forward=8000, logits=1000, moments=MOMENTS),)}
)


def both(strategy: str, processes: int, changes: dict[str, Any] | None = None) -> tuple[MemoryPlan, MemoryPlan]:
    """What is held, and what is predicted."""
    config = load_mapping(differing(RAW, changes or {})).config
    assert isinstance(config, SFTConfig)
    held = training_memory(TRACED, config, strategy, processes)
    return held, predicted_memory(TRACED, config, strategy, processes)


def test_parts_add_up_where_gradients_are_there_from_the_start() -> None:
    held, plan = both("ddp", 2)
    assert (plan.activations, plan.logits) == (8000, 1000)
    assert plan.peak == held.total + 9000


def test_one_process_has_gradients_as_they_come() -> None:
    held, plan = both("single", 1)
    assert plan.peak == held.weights + held.optimizer + 9000
    accumulated = both("single", 1, {"train.gradient_accumulation_steps": 2})[1]
    assert accumulated.peak == held.total + 9000


def test_shards_of_gradients_come_one_by_one() -> None:
    """At the second moment 2000 of 3600 bytes of gradients are there, on two ranks half of each."""
    held, plan = both("fsdp2", 2)
    assert plan.peak == held.total - held.gradients + 9000


@pytest.mark.parametrize("strategy", ["zero2", "zero3"])
def test_shards_and_buffers_are_there_beside_activations(strategy: str) -> None:
    held, plan = both(strategy, 2)
    assert plan.peak == held.total + 9000


@pytest.mark.parametrize("strategy", ["ddp", "zero2"])
def test_gradients_of_earlier_micro_batches_lie_beside_those_of_the_last(strategy: str) -> None:
    """DDP's buckets are empty until the last one; ZeRO-2 adds a partition up and reduces into another."""
    held, plan = both(strategy, 2, {"train.gradient_accumulation_steps": 2})
    assert held.gradients > 0
    assert plan.peak == held.total + held.gradients + 9000


@pytest.mark.parametrize("strategy", ["zero1", "zero3", "fsdp2"])
def test_gradients_of_earlier_micro_batches_take_no_more(strategy: str) -> None:
    held, plan = both(strategy, 2, {"train.gradient_accumulation_steps": 2})
    assert plan.peak == held.total + 9000


def test_untraced_there_is_no_peak(plan: Callable[..., Plan]) -> None:
    facts = FACTS.model_copy(update={"untraced": "Missing: values"})
    made = plan(facts=facts)
    assert [row.peak for row in made.memory] == [None] * 5
    assert made.notes == [
        "activations are not in the memory table: LlamaForCausalLM cannot be traced (Missing: values)"
    ]


def test_auto_chooses_by_the_peak(plan: Callable[..., Plan]) -> None:
    auto = {"parallel.strategy": "auto", "parallel.num_processes": 2}
    least = int((both("ddp", 2)[1].peak or 0) / (1 - MARGIN)) + 1
    made = plan(auto, facts=TRACED, memory=2 * least)
    assert made.groups[0].strategy == "ddp"
    assert "90%" in made.groups[0].why
    assert made.device_memory == least
    assert made.fitting is not None and "ddp" in made.fitting


def test_the_micro_batch_is_the_configs() -> None:
    changes = {"mixed_precision": "bf16", "gradient_checkpointing": True, "train.tokens_per_device": 2048}
    config = load_mapping(differing(RAW, changes)).config
    assert isinstance(config, SFTConfig)
    batch = micro_batch_of(config)
    assert (batch.rows, batch.tokens, batch.max_length) == (1, 2048, 512)
    assert (batch.gradient_checkpointing, batch.arithmetics) == (True, ("autocast", "low"))
