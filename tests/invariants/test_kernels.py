"""Kernels are other ways to the same numbers: a run with another attention is the same run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.cli import differing, largest_loss_difference, largest_weight_difference
from tests.forked_runs import train
from tests.invariants.test_strategies import BASE, TOLERANCE

pytestmark = pytest.mark.slow
CHANGES = {
    "default": {},
    "sdpa": {"model.attn_implementation": "sdpa"},
    "eager": {"model.attn_implementation": "eager"},
    "packed": {"data.packing": True},
    "packed-eager": {"data.packing": True, "model.attn_implementation": "eager"},
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    folder = tmp_path_factory.mktemp("kernels")
    rows = [{"prompt": "ab" * (1 + number % 7), "completion": "c" * (1 + number % 5)} for number in range(40)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    one = differing(BASE, {"model": {"path": "builtin:tiny-llama"}, "parallel.num_processes": 1, "train.max_steps": 6})
    return train({name: {**differing(one, changes), "name": name} for name, changes in CHANGES.items()}, folder)


def test_sdpa_by_name_is_the_default_to_the_bit(runs: Mapping[str, Path]) -> None:
    assert largest_loss_difference(runs["default"], runs["sdpa"]) == 0
    assert largest_weight_difference(runs["default"], runs["sdpa"]) == 0


@pytest.mark.parametrize(("usual", "eager"), [("default", "eager"), ("packed", "packed-eager")])
def test_eager_attention_is_sdpa(runs: Mapping[str, Path], usual: str, eager: str) -> None:
    assert 0 < largest_weight_difference(runs[usual], runs[eager]) < TOLERANCE, "0: the key did nothing"
    assert largest_loss_difference(runs[usual], runs[eager]) < TOLERANCE
