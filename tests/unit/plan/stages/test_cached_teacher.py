"""The plan of a distillation whose teacher speaks once: a student alone, and before that a teacher alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from scaleup.config.load import load_mapping
from scaleup.config.stages.distill import DistillConfig
from scaleup.config.stages.sft import SFTConfig
from scaleup.plan.compute import flops_forward
from scaleup.plan.facts import Footprint, ModelFacts, Tensors
from scaleup.plan.memory import predicted_memory
from scaleup.plan.stages.distill import distill_problems, distillation_memory
from scaleup.plan.types import Plan
from tests.cli import differing
from tests.fake_facts import FACTS
from tests.unit.plan.conftest import RAW

STUDENT = FACTS.model_copy(
    update={
        "footprints": (Footprint(arithmetic="float32", forward=8000, logits=1000, moments=((9000, 0), (100, 3600))),)
    }
)
TEACHER = FACTS.model_copy(update={"tensors": (Tensors(shape=(100, 50), count=1),), "num_parameters": 5000})
DISTILL = {"stage": "distill", "teacher": {"path": "builtin:tiny-llama"}, "distill": {"cache": {"top_k": 10}}}


def memory(strategy: str, processes: int, teacher: ModelFacts = TEACHER, **distill: Any) -> list[Any]:
    """Of the student by itself, and of the distillation."""
    plain = load_mapping(differing(RAW, {"parallel.num_processes": processes})).config
    config = load_mapping(differing({**RAW, **DISTILL}, {"parallel.num_processes": processes, **distill})).config
    assert isinstance(plain, SFTConfig) and isinstance(config, DistillConfig)
    alone = predicted_memory(STUDENT, plain, strategy, processes)
    return [alone, distillation_memory(config, STUDENT, teacher, strategy)]


@pytest.mark.parametrize(
    ("strategy", "processes"), [("single", 1), ("ddp", 2), ("zero2", 2), ("zero3", 2), ("fsdp2", 2)]
)
def test_no_rank_holds_a_teacher(strategy: str, processes: int) -> None:
    """Beside the student there are what was written for 8 rows of 512 tokens, and one chunk of logits."""
    alone, found = memory(strategy, processes)
    held = ("weights", "reference", "gradients", "optimizer", "buffers")
    assert [getattr(found, part) for part in held] == [getattr(alone, part) for part in held]
    assert found.reference == 0
    written, chunk = 8 * 512 * (4 * 10 + 4 * 11), 4 * 256 * 259
    assert found.logits == alone.logits + chunk
    assert found.activations == alone.activations + written
    _, beside = memory(strategy, processes, **{"distill.cache": None})
    assert beside.reference > 0 and beside.total > found.total


def test_a_large_teacher_is_the_fullest_moment() -> None:
    large = TEACHER.model_copy(update={"tensors": (Tensors(shape=(10**4, 10**3), count=3),)})
    alone, found = memory("fsdp2", 2, large)
    assert found.peak == 4 * 3 * 10**7 > alone.peak


def test_the_teacher_passes_once(plan: Callable[..., Plan]) -> None:
    """Over 10 rows, however often these are trained on."""
    flops = []
    for settings in (None, {"top_k": 10}):
        compute = plan({**DISTILL, "distill": {"cache": settings}, "train.max_steps": 100}).compute
        assert compute is not None and compute.tokens == 100 * 8 * 512
        flops.append(compute.total_flops)
    assert flops[0] - flops[1] == (100 * 8 - 10) * 512 * flops_forward(FACTS, 512)


@pytest.mark.parametrize("mode", ["offline", "sequence"])
def test_rows_that_are_known_can_be_cached(mode: str) -> None:
    config = load_mapping(differing({**RAW, **DISTILL}, {"distill.mode": mode})).config
    assert config is not None
    assert list(distill_problems(config)) == []


def test_answers_of_the_student_cannot() -> None:
    config = load_mapping(differing({**RAW, **DISTILL}, {"distill.mode": "on_policy"})).config
    assert config is not None
    (found,) = distill_problems(config)
    assert found.where == "distill.cache" and "unlike those of on_policy" in found.what
