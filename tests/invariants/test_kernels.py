"""Kernels are other ways to the same numbers: with another attention, or with compiled layers, a run is the same."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.cli import differing, largest_loss_difference, largest_weight_difference, losses
from tests.forked_runs import Leg, live
from tests.invariants.test_strategies import BASE, TOLERANCE

pytestmark = pytest.mark.slow
LORA = {"adapter": {"type": "lora", "target_modules": "all-linear"}}
ADAM = {"train.optimizer": "adamw", "train.learning_rate": 1e-3}
CHANGES: dict[str, dict[str, Any]] = {
    "default": {},
    "sdpa": {"model.attn_implementation": "sdpa"},
    "eager": {"model.attn_implementation": "eager"},
    "packed": {"data.packing": True},
    "packed-eager": {"data.packing": True, "model.attn_implementation": "eager"},
    "lora": LORA,
    "adam": ADAM,
    "adam-8bit": {**ADAM, "train.optimizer": "adamw_8bit"},
}
COMPILED = {
    "compiled": {"torch_compile": True, "gradient_checkpointing": True},
    "compiled-lora": {**LORA, "torch_compile": True},
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    folder = tmp_path_factory.mktemp("kernels")
    rows = [{"prompt": "ab" * (1 + number % 7), "completion": "c" * (1 + number % 5)} for number in range(40)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    one = differing(BASE, {"model": {"path": "builtin:tiny-llama"}, "parallel.num_processes": 1})
    made = {name: {**differing(one, changes), "name": name} for name, changes in (CHANGES | COMPILED).items()}
    lives = {name: [Leg(config)] for name, config in made.items()}
    killed = differing(made["compiled"], {"name": "resumed", "train.save_steps": 2})
    killed_8bit = differing(made["adam-8bit"], {"name": "resumed-8bit", "train.save_steps": 2})
    on_two = {"parallel.num_processes": 2, "train.per_device_train_batch_size": 2}
    lives["resumed-8bit"] = [Leg(killed_8bit, kill_after=3), Leg(killed_8bit)]
    lives["two-8bit"] = [Leg(differing(made["adam-8bit"], {"name": "two-8bit", **on_two}))]
    lives["resumed"] = [Leg(killed, kill_after=3), Leg(killed)]
    live(lives, folder)
    return {name: folder / "runs" / name for name in lives}


def test_sdpa_by_name_is_the_default_to_the_bit(runs: Mapping[str, Path]) -> None:
    assert largest_loss_difference(runs["default"], runs["sdpa"]) == 0
    assert largest_weight_difference(runs["default"], runs["sdpa"]) == 0


@pytest.mark.parametrize(("usual", "eager"), [("default", "eager"), ("packed", "packed-eager")])
def test_eager_attention_is_sdpa(runs: Mapping[str, Path], usual: str, eager: str) -> None:
    assert 0 < largest_weight_difference(runs[usual], runs[eager]) < TOLERANCE, "0: the key did nothing"
    assert largest_loss_difference(runs[usual], runs[eager]) < TOLERANCE


@pytest.mark.parametrize(("usual", "compiled"), [("default", "compiled"), ("lora", "compiled-lora")])
def test_compiled_layers_are_the_layers(runs: Mapping[str, Path], usual: str, compiled: str) -> None:
    assert 0 < largest_weight_difference(runs[usual], runs[compiled]) < TOLERANCE, "0: nothing was compiled"
    assert largest_loss_difference(runs[usual], runs[compiled]) < TOLERANCE


def test_a_compiled_run_that_goes_on_is_the_same_up_to_rounding(runs: Mapping[str, Path]) -> None:
    assert largest_weight_difference(runs["compiled"], runs["resumed"]) < TOLERANCE


def test_moments_of_8_bits_learn_as_those_of_32(runs: Mapping[str, Path]) -> None:
    """Single weights may go elsewhere, where a gradient is hardly more than noise: the loss, which falls by more than
    one, does not."""
    assert largest_weight_difference(runs["adam"], runs["adam-8bit"]) > 0
    found = losses(runs["adam-8bit"])
    assert found[1] - found[12] > 1
    assert largest_loss_difference(runs["adam"], runs["adam-8bit"]) < 0.02


def test_moments_of_8_bits_go_on_after_a_kill_to_the_bit(runs: Mapping[str, Path]) -> None:
    assert largest_weight_difference(runs["adam-8bit"], runs["resumed-8bit"]) == 0


def test_moments_of_8_bits_on_two_processes(runs: Mapping[str, Path]) -> None:
    """A gradient that rounds otherwise may fall on the other side of one of 256 values: a loss, not a weight, is
    alike."""
    assert largest_loss_difference(runs["adam-8bit"], runs["two-8bit"]) < 1e-3
