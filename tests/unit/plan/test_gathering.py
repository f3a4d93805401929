"""Whether a rollout gathers the weights once, at the very byte where it changes, and what the plan says of it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from scaleup.config.load import load_mapping
from scaleup.errors import ScaleupError
from scaleup.plan.deepspeed import BUCKET
from scaleup.plan.describe import Described
from scaleup.plan.facts import Tensors
from scaleup.plan.machine import Machine
from scaleup.plan.resolve import resolve
from scaleup.plan.strategy import FOR_ACTIVATIONS
from scaleup.plan.types import MemoryPlan, Plan
from tests.cli import differing
from tests.fake_facts import FACTS

RAW: dict[str, Any] = {
    "stage": "ppo",
    "name": "x",
    "model": {"path": "builtin:tiny-llama"},
    "data": {"train": "rows.jsonl", "prompt": "{text}", "max_length": 8},
    "ppo": {"num_rollouts": 2, "rollout_batch_size": 8, "max_new_tokens": 8},
    "reward": {"placement": "function", "function": "reward.py:score"},
    "parallel": {"strategy": "fsdp2", "num_processes": 4},
}
SMALL, LARGE = Tensors(shape=(1_000,), count=7), Tensors(shape=(10_000, 1_000), count=100)
COUNTS = dict.fromkeys(("num_parameters", "num_trainable_parameters"), 10**9 + 7_000)
BILLION = FACTS.model_copy(update={"tensors": (SMALL, LARGE), "largest_block": 10**7, **COUNTS})
MakePlan = Callable[..., Plan]


@pytest.fixture
def plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MakePlan:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"text": f"row {i}"}) + "\n" for i in range(10)))
    (tmp_path / "reward.py").write_text("def score(completions, **columns): return [0.0] * len(completions)\n")

    def make(changes: dict[str, Any] | None = None, memory: int | None = 2**45, num_gpus: int = 0) -> Plan:
        known = Described({"model": BILLION})
        monkeypatch.setattr("scaleup.plan.resolve.describe_models", lambda *_: known)
        machine = Machine(num_cores=8, num_gpus=num_gpus, memory=memory)
        return resolve(load_mapping(differing(RAW, changes or {})), machine, resume=True)[1]

    return make


def row(plan: Plan) -> MemoryPlan:
    return next(row for row in plan.memory if row.strategy == plan.groups[0].strategy)


@pytest.mark.parametrize(("precision", "width"), [("no", 4), ("bf16", 2)])
@pytest.mark.parametrize("strategy", ["zero3", "fsdp2"])
def test_the_copy_is_counted(plan: MakePlan, strategy: str, precision: str, width: int) -> None:
    changes = {"parallel.strategy": strategy, "mixed_precision": precision}
    once, each = plan(changes), plan({**changes, "parallel.gather_for_generation": False})
    assert once.groups[0].gathers_for_generation
    assert not each.groups[0].gathers_for_generation
    assert row(each).gathered == 0
    copy = width * 10**9 + (width * BUCKET if strategy == "zero3" else width * 7_000 + row(once).buffers)
    assert row(once).gathered == copy
    assert row(once).total - row(each).total == copy - row(each).buffers > 0


@pytest.mark.parametrize("strategy", ["zero3", "fsdp2"])
def test_auto_goes_by_what_fits(plan: MakePlan, strategy: str) -> None:
    changes = {"parallel.strategy": strategy}
    least = math.ceil(row(plan(changes)).total / (1 - FOR_ACTIVATIONS)) + 1
    enough, little = plan(changes, memory=4 * least), plan(changes, memory=4 * (least - 4))
    assert enough.groups[0].gathers_for_generation
    assert enough.groups[0].generation is not None
    assert enough.groups[0].generation.startswith("weights gathered once a rollout: a whole copy with all else takes ")
    assert not little.groups[0].gathers_for_generation
    assert row(little).gathered == 0
    assert little.groups[0].generation is not None
    assert little.groups[0].generation.startswith("weights gathered layer by layer for every token: a whole copy ")
    assert little.groups[0].generation.endswith(", which leaves too little")
    forced = plan({**changes, "parallel.gather_for_generation": True}, memory=4 * (least - 4))
    assert forced.groups[0].gathers_for_generation
    assert forced.groups[0].generation == ("weights gathered once a rollout: parallel.gather_for_generation says so")
    assert forced.fitting is not None
    assert strategy not in forced.fitting, "the plan says that it does not fit"


def test_a_strategy_is_chosen_with_the_copy_that_it_makes(plan: MakePlan) -> None:
    """All that fits is counted, so that what auto chooses is what the plan says fits."""
    rollouts = {"ppo.rollout_batch_size": 8, "train.per_device_train_batch_size": 1}  # gradients are added up
    chosen = {**rollouts, "parallel.strategy": "auto", "parallel.gather_for_generation": True}
    least = math.ceil(row(plan({**chosen, "parallel.strategy": "fsdp2"})).total / (1 - FOR_ACTIVATIONS)) + 1
    enough = plan(chosen, memory=4 * least)
    assert (enough.groups[0].strategy, enough.fitting) == ("fsdp2", ["fsdp2"])
    assert enough.groups[0].gathers_for_generation
    with pytest.raises(ScaleupError) as caught:
        plan(chosen, memory=4 * (least - 4))
    [problem] = caught.value.problems
    assert problem.where == "parallel.strategy"
    assert problem.remedy.endswith("parallel.gather_for_generation: auto, or a smaller model")
    without = plan({**chosen, "parallel.gather_for_generation": "auto"}, memory=4 * (least - 4)).groups[0]
    assert (without.strategy, without.gathers_for_generation) == ("fsdp2", False)


def test_an_unknown_memory_is_no_reason_to_gather(plan: MakePlan) -> None:
    group = plan(memory=None).groups[0]
    assert not group.gathers_for_generation
    assert group.generation == ("weights gathered layer by layer for every token: the memory of a rank is not known")


@pytest.mark.parametrize("changes", [{"parallel.strategy": "ddp"}, {"parallel.num_processes": 1}])
def test_what_is_whole_is_not_gathered(plan: MakePlan, changes: dict[str, Any]) -> None:
    group = plan(changes).groups[0]
    assert (group.gathers_for_generation, group.generation) == (False, None)


REFUSED = [
    ({"parallel.strategy": "ddp"}, "ddp keeps the weights whole on every rank, so there is nothing to gather"),
    ({"parallel.strategy": "zero2"}, "zero2 keeps the weights whole on every rank, so there is nothing to gather"),
]


@pytest.mark.parametrize(("changes", "what"), REFUSED)
def test_nothing_to_gather_is_refused(plan: MakePlan, changes: dict[str, Any], what: str) -> None:
    plan({**changes, "parallel.gather_for_generation": False})  # which is what happens
    with pytest.raises(ScaleupError) as caught:
        plan({**changes, "parallel.gather_for_generation": True})
    [problem] = caught.value.problems
    assert (problem.where, problem.what) == ("parallel.gather_for_generation", what)


def test_a_stage_that_generates_nothing_refuses_it(folder: Path) -> None:
    raw = {"stage": "sft", "name": "x", "model": {"path": "builtin:tiny-llama"}, "train": {"max_steps": 4}}
    raw = {**raw, "data": {"train": "rows.jsonl", "text": "{text}"}, "parallel": {"gather_for_generation": True}}
    with pytest.raises(ScaleupError, match="stage sft generates nothing from sharded weights"):
        resolve(load_mapping(raw), Machine(num_cores=2, num_gpus=0))
