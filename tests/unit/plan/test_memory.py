from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from scaleup.config.schema import ModelConfig, TrainConfig
from scaleup.plan.memory import inference_memory, training_memory
from scaleup.plan.types import MemoryPlan


def bytes_of(tensors: Any) -> int:
    """Each storage once; optimizers' step counters, which are scalars, aside."""
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(storages.values())


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.mark.parametrize("path", ["builtin:tiny-llama", "builtin:tiny-gpt2", "builtin:tiny-t5"])
@pytest.mark.parametrize("settings", [{}, {"optimizer": "sgd"}, {"optimizer": "sgd", "momentum": 0.9}], ids=str)
def test_is_what_training_holds(
    path: str, settings: dict[str, Any], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    from scaleup.models.facts import model_facts
    from scaleup.models.load import load_model
    from scaleup.train.optim import build_optimizer

    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    config, train = ModelConfig(path=path), TrainConfig(max_steps=1, **settings)
    facts = model_facts(config)
    model = load_model(config, facts)
    optimizer = build_optimizer(model, train)
    ids = torch.tensor([[3, 4, 5]])
    model(input_ids=ids, labels=ids).loss.backward()
    optimizer.step()

    states = [value for state in optimizer.state.values() for value in state.values()]
    held = MemoryPlan(
        strategy="ddp",
        weights=bytes_of(model.parameters()),
        gradients=bytes_of(parameter.grad for parameter in model.parameters() if parameter.grad is not None),
        optimizer=bytes_of(value for value in states if isinstance(value, torch.Tensor) and value.ndim),
    )
    assert training_memory(facts, train, "ddp") == held
    assert inference_memory(facts, "ddp").total == held.weights


def test_frozen_parameters_have_weights_only(facts: Any) -> None:
    memory = training_memory(facts, TrainConfig(max_steps=1), "single")
    assert (memory.weights, memory.gradients, memory.optimizer) == (4000, 3600, 7200)
    assert memory.total == 14800
