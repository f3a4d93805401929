"""What each strategy is in the plan, DeepSpeed's settings, and the offloads that cannot be."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from scaleup.config.load import load_mapping
from scaleup.config.stages.sft import SFTConfig
from scaleup.errors import ScaleupError
from scaleup.plan.deepspeed import deepspeed_settings
from scaleup.plan.types import Plan
from tests.cli import differing

MakePlan = Callable[..., Plan]

RAW: dict[str, Any] = {
    "stage": "sft",
    "name": "x",
    "model": {"path": "builtin:tiny-llama"},
    "data": {"train": "rows.jsonl", "text": "{text}"},
    "train": {"max_steps": 4},
}
OFFLOADS = {
    "nothing": {},
    "optimizer": {"parallel.offload_optimizer": True},
    "parameters": {"parallel.offload_parameters": True},
    "both": {"parallel.offload_optimizer": True, "parallel.offload_parameters": True},
}


def settings_of(stage: int, changes: dict[str, Any] | None = None) -> dict[str, Any]:
    config = load_mapping(differing(RAW, {"parallel.strategy": f"zero{stage}", **(changes or {})})).config
    assert isinstance(config, SFTConfig)
    return deepspeed_settings(config, stage)


def values_of(settings: dict[str, Any]) -> Iterator[object]:
    for value in settings.values():
        if isinstance(value, dict):
            yield from values_of(value)
        else:
            yield value


class TestDeepspeedSettings:
    @pytest.mark.parametrize("precision", ["no", "bf16", "fp16"])
    @pytest.mark.parametrize("offload", OFFLOADS)
    @pytest.mark.parametrize("stage", [1, 2, 3])
    def test_nothing_is_left_open(self, stage: int, offload: str, precision: str) -> None:
        settings = settings_of(stage, {"mixed_precision": precision, **OFFLOADS[offload]})
        assert {"auto", None}.isdisjoint(values_of(settings))
        assert settings["zero_optimization"]["stage"] == stage
        assert {kind: settings[kind]["enabled"] for kind in ("bf16", "fp16")} == {
            "bf16": precision == "bf16",
            "fp16": precision == "fp16",
        }
        assert json.loads(json.dumps(settings)) == settings  # as plan.json has it

    @pytest.mark.parametrize("clipping", [0, 0.5, 1.0])
    def test_the_clipping_is_the_configs(self, clipping: float) -> None:
        """0 stays 0, which DeepSpeed understands as none."""
        assert settings_of(2, {"train.max_grad_norm": clipping})["gradient_clipping"] == clipping

    def test_our_loop_accumulates_and_counts_the_rows(self) -> None:
        changes = {"train.gradient_accumulation_steps": 4, "train.per_device_train_batch_size": 8}
        settings = settings_of(2, changes)
        assert settings["gradient_accumulation_steps"] == settings["train_micro_batch_size_per_gpu"] == 1

    @pytest.mark.parametrize("stage", [1, 2, 3])
    def test_the_optimizer_is_offloaded_when_asked(self, stage: int) -> None:
        for asked, device in ((True, "cpu"), (False, "none")):
            settings = settings_of(stage, {"parallel.offload_optimizer": asked})
            assert settings["zero_optimization"]["offload_optimizer"] == {"device": device}
            assert settings["zero_force_ds_cpu_optimizer"] is asked

    def test_parameters_are_offloaded_when_asked(self) -> None:
        for asked, device in ((True, "cpu"), (False, "none")):
            zero = settings_of(3, {"parallel.offload_parameters": asked})["zero_optimization"]
            assert zero["offload_param"] == {"device": device}
        assert "offload_param" not in settings_of(2)["zero_optimization"]


class TestRefusals:
    def refused(self, plan: MakePlan, strategy: str, changes: dict[str, Any]) -> dict[str, str]:
        with pytest.raises(ScaleupError) as caught:
            plan({"parallel.strategy": strategy, **changes})
        return {problem.where: str(problem) for problem in caught.value.problems}

    @pytest.mark.parametrize("strategy", ["single", "ddp", "fsdp2"])
    def test_only_zero_offloads_the_optimizer(self, plan: MakePlan, strategy: str) -> None:
        found = self.refused(plan, strategy, OFFLOADS["optimizer"])
        assert list(found) == ["parallel.offload_optimizer"]
        assert f"{strategy} cannot" in found["parallel.offload_optimizer"]

    @pytest.mark.parametrize("strategy", ["ddp", "zero1", "zero2", "fsdp2"])
    def test_only_zero3_offloads_parameters(self, plan: MakePlan, strategy: str) -> None:
        found = self.refused(plan, strategy, OFFLOADS["parameters"])
        assert list(found) == ["parallel.offload_parameters"]
        assert "use zero3" in found["parallel.offload_parameters"]

    @pytest.mark.parametrize("strategy", ["zero1", "zero2", "zero3"])
    def test_the_offloaded_optimizer_is_adamw(self, plan: MakePlan, strategy: str) -> None:
        found = self.refused(plan, strategy, {**OFFLOADS["optimizer"], "train.optimizer": "sgd"})
        assert list(found) == ["parallel.offload_optimizer"]
        assert "AdamW, not sgd" in found["parallel.offload_optimizer"]

    def test_an_unknown_strategy(self, plan: MakePlan) -> None:
        assert list(self.refused(plan, "zero4", {})) == ["parallel.strategy"]

    def test_what_is_possible_is_not_refused(self, plan: MakePlan) -> None:
        for stage in (1, 2, 3):
            plan({"parallel.strategy": f"zero{stage}", **OFFLOADS["optimizer"]})
        plan({"parallel.strategy": "zero3", **OFFLOADS["both"]})


@pytest.mark.parametrize("processes", [1, 2])
class TestGroup:
    @pytest.mark.parametrize("stage", [1, 2, 3])
    def test_zero(self, plan: MakePlan, stage: int, processes: int, folder: Path) -> None:
        made = plan({"parallel.strategy": f"zero{stage}", "parallel.num_processes": processes})
        [group] = made.groups
        assert (group.strategy, group.num_processes, group.backend) == (f"zero{stage}", processes, "gloo")
        assert (group.distributed_type, group.engine, group.zero_stage) == ("DEEPSPEED", "DeepSpeedEngine", stage)
        assert group.deepspeed == settings_of(stage)
        assert f"over {processes} process(es)" in group.why
        assert ("parameters" in group.why, "gradients" in group.why) == (stage == 3, stage >= 2)
        made.save(folder / "plan.json")
        assert Plan.read(folder / "plan.json") == made

    def test_fsdp2(self, plan: MakePlan, processes: int) -> None:
        [group] = plan({"parallel.strategy": "fsdp2", "parallel.num_processes": processes}).groups
        assert (group.strategy, group.num_processes, group.backend) == ("fsdp2", processes, "gloo")
        assert (group.distributed_type, group.engine) == ("FSDP", "FSDPModule")
        assert (group.zero_stage, group.deepspeed) == (None, None)

    def test_ddp_is_single_for_one_process(self, plan: MakePlan, processes: int) -> None:
        [group] = plan({"parallel.strategy": "ddp", "parallel.num_processes": processes}).groups
        kind = {1: ("single", "NO", "none"), 2: ("ddp", "MULTI_CPU", "DistributedDataParallel")}[processes]
        assert (group.strategy, group.distributed_type, group.engine) == kind

    @pytest.mark.parametrize("strategy", ["zero3", "fsdp2"])
    @pytest.mark.parametrize("stage", ["evaluate", "generate"])
    def test_what_does_not_train_is_not_sharded(
        self, plan: MakePlan, stage: str, strategy: str, processes: int
    ) -> None:
        stages = {"stage": stage, "data.test": "rows.jsonl", "data.train": None, "train": None}
        if stage == "generate":
            stages |= {"data.text": None, "data.prompt": "{text}"}
        made = plan({**stages, "parallel.strategy": strategy, "parallel.num_processes": processes})
        [group] = made.groups
        kind = {1: ("single", "NO", "none"), 2: ("ddp", "MULTI_CPU", "DistributedDataParallel")}[processes]
        assert (group.strategy, group.distributed_type, group.engine) == kind
        assert (group.zero_stage, group.deepspeed) == (None, None)


@pytest.mark.parametrize("strategy", ["zero2", "fsdp2"])
def test_gpus_talk_through_nccl(plan: MakePlan, strategy: str) -> None:
    [group] = plan({"parallel.strategy": strategy, "parallel.num_processes": 2}, num_gpus=2).groups
    assert (group.device, group.backend) == ("cuda", "nccl")
