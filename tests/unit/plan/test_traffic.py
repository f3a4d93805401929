"""The bytes of a step by closed forms: those that benchmarks/memory/fit.py counts in runs."""

from __future__ import annotations

from typing import Any
from unittest.mock import patch

import pytest

from scaleup.config.load import load_mapping
from scaleup.config.stages.sft import SFTConfig
from scaleup.plan.facts import Tensors
from scaleup.plan.traffic import Traffic, step_traffic
from tests.cli import differing
from tests.fake_facts import facts_of
from tests.unit.plan.conftest import RAW

ALL, HEAD = 8 * 10**6, 10**6
MODEL = facts_of(
    num_parameters=ALL,
    num_trainable_parameters=ALL,
    tensors=(Tensors(shape=(1000, 1000), count=8),),
    vocab_size=1000,
    hidden_size=1000,
)


def traffic(strategy: str, processes: int, micro_batches: int, **changes: Any) -> Traffic:
    config = load_mapping(differing(RAW, changes.pop("config", {}))).config
    assert isinstance(config, SFTConfig)
    return step_traffic(MODEL.model_copy(update=changes), config, strategy, processes, micro_batches)


@pytest.mark.parametrize(
    ("strategy", "once", "twice"),
    [
        ("single", 0, 0),
        ("ddp", 2 * ALL, 2 * ALL),
        ("zero1", 3 * ALL, 3 * ALL),
        ("zero2", 3 * ALL, 5 * ALL),
        ("zero3", 2 * ALL, 4 * ALL),
        ("fsdp2", 3 * ALL - HEAD, 6 * ALL - 2 * HEAD),
    ],
)
def test_elements_of_a_step(strategy: str, once: int, twice: int) -> None:
    processes = 1 if strategy == "single" else 4
    for micro_batches, elements in ((1, once), (2, twice)):
        found = traffic(strategy, processes, micro_batches)
        assert found == Traffic(4 * elements * (processes - 1) // processes, 0)


def test_zero3_gathers_again_what_it_could_not_keep() -> None:
    with patch("scaleup.plan.traffic.LIVE", 5 * 10**6):
        assert traffic("zero3", 2, 1).communication == 4 * (ALL + 3 * 10**6 + ALL) // 2


def test_low_precision_halves_all_but_ddps() -> None:
    low = {"config": {"mixed_precision": "bf16"}}
    assert traffic("ddp", 2, 1, **low) == traffic("ddp", 2, 1)
    for strategy in ("zero1", "zero2", "zero3", "fsdp2"):
        assert 2 * traffic(strategy, 2, 1, **low).communication == traffic(strategy, 2, 1).communication


def test_what_is_frozen_has_no_gradient_to_send() -> None:
    assert traffic("ddp", 2, 1, num_trainable_parameters=1000).communication == 4 * 1000
    assert traffic("fsdp2", 2, 1, num_trainable_parameters=1000).communication == 2 * (2 * ALL - HEAD + 1000)


def test_what_is_offloaded_goes_out_and_comes_back() -> None:
    offloads = {"config": {"parallel.offload_optimizer": True}}
    assert traffic("zero1", 2, 4, **offloads).offload == 4 * ALL * 2 // 2
    assert traffic("zero2", 2, 4, **offloads).offload == 4 * ALL * 5 // 2
    both = {"config": {"parallel.offload_optimizer": True, "parallel.offload_parameters": True}}
    assert traffic("zero3", 2, 1, **both).offload == 4 * ALL * 2 // 2 + 4 * ALL // 2
