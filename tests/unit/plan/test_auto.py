"""What `parallel.strategy: auto` becomes, at the very byte where it changes, and what it is refused for."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from scaleup.artifacts.run_folder import RunFolder
from scaleup.config.load import dump, load_mapping
from scaleup.config.stages.sft import SFTConfig
from scaleup.errors import Problem, ScaleupError
from scaleup.plan.facts import ModelFacts, Tensors
from scaleup.plan.memory import training_memory
from scaleup.plan.strategy import FOR_ACTIVATIONS
from scaleup.plan.types import Plan
from tests.cli import differing
from tests.fake_facts import FACTS
from tests.unit.plan.conftest import RAW

MakePlan = Callable[..., Plan]

BILLION = FACTS.model_copy(
    update={
        "num_parameters": 10**9,
        "num_trainable_parameters": 10**9,
        "tensors": (Tensors(shape=(10_000, 1_000), count=100),),
        "largest_block": 10**7,
    }
)
AUTO = {"parallel.strategy": "auto", "parallel.num_processes": 4}
OFFLOAD = {"parallel.offload_optimizer": True}
CUDA = {"parallel.device": "cuda"}


def needs(strategy: str, changes: dict[str, Any], facts: ModelFacts = BILLION) -> int:
    """The least memory of a rank in which a strategy fits beside activations."""
    config = load_mapping(differing(RAW, changes)).config
    assert isinstance(config, SFTConfig)
    held = training_memory(facts, config, strategy, config.parallel.num_processes)
    total = held.total + (0 if config.parallel.device == "cuda" else held.host)
    return math.ceil(total / (1 - FOR_ACTIVATIONS)) + 1


def refused(plan: MakePlan, changes: dict[str, Any], **machine: Any) -> Problem:
    with pytest.raises(ScaleupError) as caught:
        plan(changes, facts=BILLION, **machine)
    [problem] = caught.value.problems
    assert problem.where == "parallel.strategy"
    return problem


@pytest.mark.parametrize("precision", ["no", "bf16"])
class TestTheFirstThatFits:
    def chosen(self, plan: MakePlan, precision: str, a_rank: int, **more: Any) -> str:
        changes = {**AUTO, "mixed_precision": precision, **more}
        return plan(changes, facts=BILLION, memory=4 * a_rank).groups[0].strategy

    def test_at_its_boundary(self, plan: MakePlan, precision: str) -> None:
        for strategy in ("ddp", "fsdp2"):
            least = needs(strategy, {**AUTO, "mixed_precision": precision})
            assert self.chosen(plan, precision, least) == strategy
            if strategy == "ddp":
                assert self.chosen(plan, precision, least - 4) == "zero1"

    def test_communication_decides_not_memory(self, plan: MakePlan, precision: str) -> None:
        order = {"ddp": 0, "zero1": 1, "zero2": 2, "fsdp2": 3}
        found = [self.chosen(plan, precision, tenths * 10**8) for tenths in range(300, 70, -1)]
        assert [order[name] for name in found] == sorted(order[name] for name in found)
        assert set(found) == set(order)


def test_on_gpus_the_smallest_one_counts_and_all_of_it_is_a_ranks(plan: MakePlan) -> None:
    changes = {**AUTO, **CUDA}
    least = needs("ddp", changes)
    assert plan(changes, 4, BILLION, gpu_memory=least, memory=10**10).groups[0].strategy == "ddp"
    assert plan(changes, 4, BILLION, gpu_memory=least - 4, memory=10**10).groups[0].strategy == "zero1"


def test_memory_is_that_of_a_node(plan: MakePlan) -> None:
    nodes = {"parallel.num_nodes": 2, "parallel.main_address": "n0", "parallel.main_port": 29500}
    least = needs("ddp", AUTO)
    assert plan({**AUTO, **nodes}, facts=BILLION, memory=2 * least).groups[0].strategy == "ddp"
    assert plan(AUTO, facts=BILLION, memory=2 * least).groups[0].strategy != "ddp"


def test_one_process_is_single_or_nothing(plan: MakePlan) -> None:
    one = {**AUTO, "parallel.num_processes": 1}
    least = needs("single", one)
    [group] = plan(one, facts=BILLION, memory=least).groups
    assert (group.strategy, group.engine, group.is_chosen) == ("single", "none", True)
    problem = refused(plan, one, memory=least - 4)
    assert "nothing fits: single needs 14.90 GiB a rank of the 14.90 GiB that 70% of its 21.29 GiB are" in problem.what
    assert "train.optimizer: sgd" in problem.remedy


class TestOffloading:
    def test_is_kept(self, plan: MakePlan) -> None:
        much = {"memory": 10**12, "gpu_memory": 10**11, "num_gpus": 4, "facts": BILLION}
        assert plan({**AUTO, **CUDA, **OFFLOAD}, **much).groups[0].strategy == "zero1"
        both = {**AUTO, **CUDA, **OFFLOAD, "parallel.offload_parameters": True}
        [group] = plan(both, **much).groups
        assert group.strategy == "zero3"
        assert group.deepspeed is not None
        assert group.deepspeed["zero_optimization"]["offload_param"] == {"device": "cpu"}

    def test_needs_main_memory(self, plan: MakePlan) -> None:
        problem = refused(plan, {**AUTO, **CUDA, **OFFLOAD}, num_gpus=4, gpu_memory=10**11, memory=10**9)
        assert "of main memory" in problem.what

    def test_brings_nothing_on_a_cpu(self, plan: MakePlan) -> None:
        least = needs("zero1", {**AUTO, **OFFLOAD})
        assert plan({**AUTO, **OFFLOAD}, facts=BILLION, memory=4 * least).groups[0].strategy == "zero1"
        assert plan({**AUTO, **OFFLOAD}, facts=BILLION, memory=4 * (least - 4)).groups[0].strategy == "zero2"


class TestRefusals:
    def test_nothing_fits(self, plan: MakePlan) -> None:
        problem = refused(plan, {**AUTO, **CUDA}, num_gpus=4, gpu_memory=2**30)
        assert "nothing fits: fsdp2 needs" in problem.what
        assert "70% of its 1.00 GiB" in problem.what
        assert "more processes, parallel.offload_optimizer: true" in problem.remedy

    def test_gpus_of_unknown_memory(self, plan: MakePlan) -> None:
        problem = refused(plan, {**AUTO, **CUDA}, num_gpus=4, memory=10**12)
        assert "this machine does not tell" in problem.what
        assert "nvidia-smi" in problem.remedy

    def test_a_machine_of_unknown_memory(self, plan: MakePlan) -> None:
        assert "/proc/meminfo" in refused(plan, AUTO).remedy


def test_the_plan_says_why(plan: MakePlan) -> None:
    made = plan({**AUTO, "mixed_precision": "bf16"}, facts=BILLION, memory=4 * 12 * 2**30)
    [group] = made.groups
    assert (group.strategy, group.is_chosen, group.zero_stage) == ("zero1", True, 1)
    assert group.why.endswith(
        "chosen by auto: it needs 6.61 GiB a rank of the 8.40 GiB that 70% of its 12.00 GiB are; ddp needs 14.90 GiB"
    )
    assert made.remarks == [f"strategy zero1: {group.why}"]
    assert plan({"parallel.num_processes": 2}).remarks == []


@pytest.mark.parametrize("stage", ["evaluate", "generate"])
@pytest.mark.parametrize(("processes", "strategy"), [(1, "single"), (2, "ddp")])
def test_what_does_not_train_needs_no_memory_known(plan: MakePlan, stage: str, processes: int, strategy: str) -> None:
    stages = {"stage": stage, "data.test": "rows.jsonl", "data.train": None, "train": None}
    if stage == "generate":
        stages |= {"data.text": None, "data.prompt": "{text}"}
    [group] = plan({**stages, "parallel.strategy": "auto", "parallel.num_processes": processes}).groups
    assert (group.strategy, group.is_chosen) == (strategy, False)


class TestARunThatHasBegun:
    def begin(self, plan: MakePlan, changes: dict[str, Any], memory: int) -> str:
        made = plan(changes, facts=BILLION, memory=memory)
        config = load_mapping(differing(RAW, changes)).config
        assert config is not None
        run = RunFolder(Path(made.run_folder))
        run.path.mkdir(parents=True, exist_ok=True)
        run.config_file.write_text(dump(config), encoding="utf-8")
        made.save(run.plan_file)
        assert "strategy: auto" in run.config_file.read_text()
        return made.groups[0].strategy

    def test_stays_with_its_strategy(self, plan: MakePlan) -> None:
        assert self.begin(plan, AUTO, 4 * needs("zero2", AUTO)) == "zero2"
        for memory in (10**12, 33 * 10**9, None):
            [group] = plan(AUTO, facts=BILLION, memory=memory).groups
            assert group.strategy == "zero2"
            assert group.why.endswith("chosen by auto: as this run began")

    def test_chooses_anew_on_other_processes(self, plan: MakePlan) -> None:
        rows = {"train.global_batch_size": 16, "train.per_device_train_batch_size": 4}
        assert self.begin(plan, {**AUTO, **rows}, 4 * needs("zero2", AUTO)) == "zero2"
        fewer = {**AUTO, **rows, "parallel.num_processes": 2}
        assert plan(fewer, facts=BILLION, memory=10**12).groups[0].strategy == "ddp"
