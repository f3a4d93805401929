"""What loading takes on a host, and a host that is too small for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from scaleup.errors import ScaleupError
from scaleup.plan.facts import Tensors
from scaleup.plan.memory import quantized_bytes
from scaleup.plan.strategy import NothingFits
from scaleup.plan.types import LoadingPlan, Plan
from tests.fake_facts import FACTS

MakePlan = Callable[..., Plan]

MILLIONS = FACTS.model_copy(
    update={
        "num_parameters": 10**8,
        "num_trainable_parameters": 10**8,
        "tensors": (Tensors(shape=(10_000, 2_000), count=1), Tensors(shape=(10_000, 1_000), count=8)),
        "largest_block": 2 * 10**7,
    }
)
PASSING = 2 * 4 * 2 * 10**7
FOUR: dict[str, Any] = {"parallel.num_processes": 4, "train.optimizer": "sgd"}


@pytest.mark.parametrize(
    ("strategy", "kept"),
    [
        ("ddp", 4 * 10**8),
        ("fsdp2", 10**8),
        ("zero3", 3 * 10**8),  # a shard, its gradient and its float32 copy
    ],
)
def test_a_rank_keeps_its_part_on_a_cpu(plan: MakePlan, strategy: str, kept: int) -> None:
    made = plan({**FOUR, "parallel.strategy": strategy}, facts=MILLIONS)
    rank = kept + PASSING
    assert made.loading == [LoadingPlan(group="policy", kept=kept, rank=rank, node=4 * rank)]


def test_of_a_4_bit_base_a_rank_keeps_its_shards_and_has_what_quantizing_takes(plan: MakePlan) -> None:
    low = (Tensors(shape=(10_000, 1_000), count=1), Tensors(shape=(10_000, 2_000), count=8, quantized=True))
    facts = MILLIONS.model_copy(update={"tensors": low})
    changes = {**FOUR, "parallel.strategy": "zero3", "adapter": {"type": "lora"}, "quantization": "4bit"}
    whole = sum(tensors.count * quantized_bytes(tensors.shape, "4bit") for tensors in low if tensors.quantized)
    made = plan(changes, facts=facts)
    assert made.loading[0].kept < 3 * 10**7 + whole // 2
    assert made.loading[0].rank == made.loading[0].kept + 2 * PASSING
    cuda = {**changes, "parallel.device": "cuda"}
    assert plan(cuda, 4, facts, gpu_memory=10**11, memory=10**12).loading[0].rank == PASSING


def test_a_node_has_its_own_ranks(plan: MakePlan) -> None:
    nodes = {"parallel.num_nodes": 2, "parallel.main_address": "n0", "parallel.main_port": 29500}
    [loading] = plan({**FOUR, **nodes, "parallel.strategy": "fsdp2"}, facts=MILLIONS).loading
    assert loading.node == 2 * loading.rank == 2 * (10**8 + PASSING)


def test_on_gpus_only_what_is_read_or_offloaded_is_on_the_host(plan: MakePlan) -> None:
    cuda = {**FOUR, "parallel.device": "cuda", "parallel.strategy": "zero3"}
    [loading] = plan(cuda, 4, MILLIONS, gpu_memory=10**11, memory=4 * PASSING).loading
    assert (loading.kept, loading.rank) == (0, PASSING)
    away = {**cuda, "parallel.offload_parameters": True}
    assert plan(away, 4, MILLIONS, gpu_memory=10**11, memory=10**12).loading[0].kept == 10**8


def test_a_host_that_is_too_small_is_refused_at_the_very_byte(plan: MakePlan) -> None:
    changes = {**FOUR, "parallel.strategy": "fsdp2"}
    needed = 4 * (10**8 + PASSING)
    assert plan(changes, facts=MILLIONS, memory=needed).loading[0].node == needed
    with pytest.raises(NothingFits) as caught:
        plan(changes, facts=MILLIONS, memory=needed - 1)
    [problem] = caught.value.problems
    assert problem.where == "parallel.num_processes"
    assert "loading takes 0.97 GiB of a node's main memory (4 ranks of 0.24 GiB), and it has 0.97 GiB" in problem.what
    with pytest.raises(ScaleupError, match="fsdp2 on more nodes"):
        plan({**changes, "parallel.strategy": "ddp"}, facts=MILLIONS, memory=10**9)


def test_a_host_that_is_not_known_is_not_refused(plan: MakePlan) -> None:
    assert plan(FOUR, facts=MILLIONS, memory=None).loading[0].node > 10**9


def test_files_that_lack_a_weight_are_refused(plan: MakePlan) -> None:
    flawed = FACTS.model_copy(update={"flaw": ("1 weight is not in its files: a", "check it")})
    with pytest.raises(ScaleupError) as caught:
        plan(facts=flawed)
    assert str(caught.value) == "model.path: 1 weight is not in its files: a -> check it"
