"""The plan of learning from preferences: what its reference takes of memory and of arithmetic."""

from __future__ import annotations

from typing import Any

import pytest

from scaleup.config.load import load_mapping
from scaleup.config.stages.dpo import DPOConfig
from scaleup.plan.compute import Rate, flops_a_token, flops_forward
from scaleup.plan.stages.dpo import PLANNER
from scaleup.plan.types import BatchPlan
from tests.cli import differing
from tests.fake_facts import FACTS
from tests.unit.plan.conftest import RAW

PAIRS = {"stage": "dpo", "data.text": None, "data.chosen": "{good}", "data.rejected": "{bad}"}
SINGLE = {"stage": "dpo", "data.text": None, "data.prompt": "{a}", "data.completion": "{b}", "data.label": "c"}
LORA = {"adapter": {"type": "lora"}}
BATCH = BatchPlan(
    micro_batch=2, accumulation=1, global_batch=2, num_train_rows=10, num_steps=5, unit="rows", tokens=None
)


def config_of(changes: dict[str, Any]) -> DPOConfig:
    raw = {key: value for key, value in differing(RAW, changes).items() if value is not None}
    config = load_mapping(raw).config
    assert isinstance(config, DPOConfig)
    return config


@pytest.mark.parametrize(
    ("changes", "holds_copy"),
    [
        ({}, True),
        ({"dpo.loss": "simpo"}, False),
        ({"dpo.reference_free": True}, False),
        ({"dpo.reference": "cached"}, False),
        (LORA, False),
        ({"adapter": {"type": "selective", "parameters": ["*"]}}, True),
    ],
)
def test_a_frozen_copy_is_the_reference_of_what_cannot_be_switched_off(
    changes: dict[str, Any], holds_copy: bool
) -> None:
    config = config_of({**PAIRS, **changes})
    memory = PLANNER.memory(config, {"model": FACTS}, "ddp")
    assert (memory.reference > 0) == holds_copy
    assert PLANNER.trained(config, {"model": FACTS}).num_parameters == (1 + holds_copy) * FACTS.num_parameters


def test_each_row_costs_what_is_computed_of_it() -> None:
    """Of a pair both responses are learned, and read by the reference; of a single response one is learned, and another
    read by the policy too; a cached reference reads both of each row once."""
    once, forward = flops_a_token(FACTS, 512, False), flops_forward(FACTS, 512)
    wanted = {
        "pairs": (PAIRS, 5 * 2 * 2 * 512 * (once + forward)),
        "cached": ({**PAIRS, "dpo.reference": "cached"}, 5 * 2 * 2 * 512 * once + 10 * 2 * 512 * forward),
        "without": ({**PAIRS, "dpo.loss": "simpo"}, 5 * 2 * 2 * 512 * once),
        "kto": ({**SINGLE, "dpo.loss": "kto"}, 5 * 2 * 512 * (once + forward + 2 * forward)),
        "kto, cached": (
            {**SINGLE, "dpo.loss": "kto", "dpo.reference": "cached"},
            5 * 2 * 512 * (once + forward) + 10 * 2 * 512 * forward,
        ),
    }
    for name, (changes, flops) in wanted.items():
        found = PLANNER.compute(config_of(changes), {"model": FACTS}, BATCH, Rate())
        assert found is not None and found.total_flops == flops, name


def test_a_micro_batch_counts_both_responses_of_a_pair() -> None:
    pairs, single = (config_of(changes) for changes in (PAIRS, {**SINGLE, "dpo.loss": "kto"}))
    rows = [PLANNER.micro_batch(config).rows for config in (pairs, single)]  # type: ignore[union-attr]
    assert rows == [16, 8]
