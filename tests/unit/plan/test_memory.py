"""What a rank holds: closed forms on cases small enough to add up by hand, and the tensors of a real model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from scaleup.config.load import load_mapping
from scaleup.config.schema import ModelConfig
from scaleup.config.stages.sft import SFTConfig
from scaleup.plan.deepspeed import BUCKET
from scaleup.plan.facts import ModelFacts, Tensors
from scaleup.plan.memory import inference_memory, training_memory
from scaleup.plan.types import MemoryPlan
from tests.cli import differing
from tests.fake_facts import FACTS
from tests.unit.plan.conftest import RAW

HALF = {"mixed_precision": "bf16"}
SGD = {"train.optimizer": "sgd"}
MOMENTUM = {**SGD, "train.momentum": 0.9}
LARGE = FACTS.model_copy(
    update={
        "num_parameters": 150_500 + 30_000 + 90,
        "num_trainable_parameters": 150_500 + 30_000 + 90,
        "tensors": (
            Tensors(shape=(301, 500), count=1),
            Tensors(shape=(100, 100), count=3),
            Tensors(shape=(45,), count=2),
        ),
        "largest_block": 160_000,
    }
)
"""One tensor is larger than what ZeRO-3 leaves whole."""


def config_of(changes: dict[str, Any] | None = None) -> SFTConfig:
    config = load_mapping(differing(RAW, changes or {})).config
    assert isinstance(config, SFTConfig)
    return config


def held(strategy: str, processes: int, changes: dict[str, Any] | None = None, facts: ModelFacts = FACTS) -> MemoryPlan:
    return training_memory(facts, config_of(changes), strategy, processes)


def parts(memory: MemoryPlan) -> tuple[int, int, int]:
    return memory.weights, memory.gradients, memory.optimizer


def bytes_of(tensors: Any) -> int:
    """Each storage once; optimizers' step counters, which are scalars, aside."""
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(storages.values())


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.mark.parametrize("path", ["builtin:tiny-llama", "builtin:tiny-gpt2", "builtin:tiny-t5"])
@pytest.mark.parametrize("settings", [{}, {"train.optimizer": "adamw_8bit"}, SGD, MOMENTUM], ids=str)
def test_is_what_training_holds(
    path: str, settings: dict[str, Any], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    from scaleup.describe.model import model_facts
    from scaleup.models.load import load_model
    from scaleup.train.optim import build_optimizer

    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    model_config, config = ModelConfig(path=path), config_of(settings)
    facts = model_facts(model_config)
    model = load_model(model_config, facts)
    optimizer = build_optimizer(model, config.train)
    ids = torch.tensor([[3, 4, 5]])
    model(input_ids=ids, labels=ids).loss.backward()
    optimizer.step()

    states = [value for state in optimizer.state.values() for value in state.values()]
    found = MemoryPlan(
        strategy="ddp",
        weights=bytes_of(model.parameters()),
        gradients=bytes_of(parameter.grad for parameter in model.parameters() if parameter.grad is not None),
        optimizer=bytes_of(value for value in states if isinstance(value, torch.Tensor) and value.ndim),
    )
    assert training_memory(facts, config, "ddp", 2) == found
    assert inference_memory(facts, "ddp").total == found.weights
    assert sum(tensors.elements * tensors.count for tensors in facts.tensors) == facts.num_parameters


def test_frozen_parameters_have_weights_only() -> None:
    memory = held("single", 1)
    assert parts(memory) == (4000, 3600, 7200)
    assert (memory.total, memory.buffers, memory.host) == (14800, 0, 0)


@pytest.mark.parametrize(("settings", "moments"), [({}, 2), (SGD, 0), (MOMENTUM, 1)])
@pytest.mark.parametrize("precision", [{}, HALF], ids=["no", "bf16"])
def test_ddp_replicates_float32_in_any_precision(
    settings: dict[str, Any], moments: int, precision: dict[str, Any]
) -> None:
    assert parts(held("ddp", 8, {**settings, **precision})) == (4000, 3600, moments * 3600)


class TestZero1And2:
    """800 elements in matrices and 100 in vectors train, 100 do not. On three ranks the groups are padded to multiples
    of 6, which are 804 and 102: 906 in all, 302 a rank."""

    def test_the_optimizers_groups_are_padded_and_partitioned(self) -> None:
        memory = held("zero1", 3)
        assert parts(memory) == (4 * (906 + 100), 4 * 900, 4 * 302 * 3)
        assert memory.buffers == 4 * BUCKET

    def test_zero2_holds_its_own_gradients_only(self) -> None:
        assert parts(held("zero2", 3)) == (4 * 1006, 4 * 302, 4 * 302 * 3)

    def test_half_precision_halves_all_but_the_optimizer(self) -> None:
        memory = held("zero2", 3, HALF)
        assert parts(memory) == (2 * 1006, 2 * 302, 4 * 302 * 3)
        assert memory.buffers == 2 * BUCKET

    def test_sgd_keeps_a_float32_copy_all_the_same(self) -> None:
        assert held("zero2", 3, SGD).optimizer == 4 * 302
        assert held("zero2", 3, MOMENTUM).optimizer == 4 * 302 * 2

    def test_offloaded(self) -> None:
        """To main memory: master weights, two moments, gradients in float32, weights on their way back, and a staging
        buffer as large as the largest tensor."""
        memory = held("zero2", 3, {**HALF, "parallel.offload_optimizer": True})
        assert parts(memory) == (2 * 1006, 0, 0)
        assert memory.buffers == 2 * (BUCKET + 800)
        assert memory.host == 302 * (4 * 3 + 4 + 2) + 2 * 800


class TestZero3:
    """Four shards of 150,500, 10,000 (three times) and 45 (twice) elements: 37,625 + 3 x 2,500 + 2 x 12."""

    SHARDS = 37_625 + 3 * 2_500 + 2 * 12
    SMALL = 3 * 10_000 + 2 * 45

    def test_small_tensors_are_on_each_rank_as_well(self) -> None:
        memory = held("zero3", 4, facts=LARGE)
        assert parts(memory) == (4 * (self.SHARDS + self.SMALL), 4 * self.SHARDS, 4 * self.SHARDS * 3)

    def test_one_process_gathers_nothing(self) -> None:
        memory = held("zero3", 1, facts=LARGE)
        assert parts(memory) == (4 * 180_590, 4 * 180_590, 12 * 180_590)
        assert memory.buffers == 4 * BUCKET

    def test_offloaded(self) -> None:
        changes = {**HALF, "parallel.offload_optimizer": True, "parallel.offload_parameters": True}
        memory = held("zero3", 4, changes, LARGE)
        assert parts(memory) == (2 * self.SMALL, 0, 0)
        assert memory.host == self.SHARDS * (2 + 4 * 3 + 4 + 2)


class TestFsdp2:
    def test_the_first_rank_has_the_most_rows(self) -> None:
        """Of 301, 100 and 45 rows on four ranks: 76, 25 and 12."""
        shards = 76 * 500 + 3 * 25 * 100 + 2 * 12
        for precision in ({}, HALF):
            assert parts(held("fsdp2", 4, precision, LARGE)) == (4 * shards, 4 * shards, 8 * shards)

    def test_more_ranks_than_rows_leave_a_row_each(self) -> None:
        assert held("fsdp2", 1000, facts=LARGE).weights == 4 * (500 + 3 * 100 + 2)

    def test_blocks_travel_in_the_runs_precision(self) -> None:
        assert held("fsdp2", 4, facts=LARGE).buffers == 4 * 4 * 160_000
        assert held("fsdp2", 4, HALF, LARGE).buffers == 2 * 2 * 160_000
