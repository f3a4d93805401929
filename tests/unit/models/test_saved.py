"""What is written as a model is what Transformers would write, and no more of it is ever in memory than one weight."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import MixtralConfig, MixtralForCausalLM

from scaleup.distributed.deferred import deferred
from scaleup.models.saved import own_weights, save_model, write_safetensors
from tests.unit.data import tiny

NAMES = ["llama", "qwen2", "gpt2", "t5", "bart"]


def written(folder: Path) -> dict[str, torch.Tensor]:
    return {name: weight for file in folder.glob("*.safetensors") for name, weight in load_file(file).items()}


def read_in_turn(weights: dict[str, torch.Tensor], order: list[str]) -> dict[str, torch.Tensor]:
    """Deferred ones, which note when they are read."""

    def read(name: str) -> torch.Tensor:
        order.append(name)
        return weights[name].detach()

    return {name: deferred(partial(read, name), weight.shape, weight.dtype) for name, weight in weights.items()}


def experts() -> Any:
    """Which a Mixtral has in one tensor, and its files apart."""
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "vocab_size": 40}
    return MixtralForCausalLM(MixtralConfig(**sizes, num_attention_heads=2, num_key_value_heads=1, num_local_experts=3))


@pytest.mark.parametrize("name", [*NAMES, "mixtral"])
def test_it_is_what_transformers_writes(name: str, tmp_path: Path) -> None:
    model, order = experts() if name == "mixtral" else tiny.model(name), list[str]()
    model.save_pretrained(tmp_path / "theirs")
    (tmp_path / "ours").mkdir()
    weights = own_weights(model)
    save_model(model, tmp_path / "ours", read_in_turn(weights, order), "5GB")
    ours, theirs = written(tmp_path / "ours"), written(tmp_path / "theirs")
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)
    assert {file.name for file in (tmp_path / "ours").iterdir()} == {
        file.name for file in (tmp_path / "theirs").iterdir()
    }
    for file in ("config.json", "generation_config.json"):
        assert (tmp_path / "ours" / file).read_text() == (tmp_path / "theirs" / file).read_text()
    if name != "mixtral":
        assert len(order) == len(set(order)) == len(ours), "each is read once"


@pytest.mark.parametrize("name", NAMES)
def test_several_files_and_an_index(name: str, tmp_path: Path) -> None:
    """As Transformers names and fills them; what was written, plain Transformers loads."""
    model = tiny.model(name)
    model.save_pretrained(tmp_path / "theirs", max_shard_size="60KB")
    (tmp_path / "ours").mkdir()
    save_model(model, tmp_path / "ours", own_weights(model), "60KB")
    indices = [json.loads((tmp_path / who / "model.safetensors.index.json").read_text()) for who in ("ours", "theirs")]
    maps = [index["weight_map"] for index in indices]
    assert maps[0].keys() == maps[1].keys() and len(set(maps[0].values())) > 3
    assert indices[0]["metadata"]["total_size"] == indices[1]["metadata"]["total_size"]
    again, info = type(model).from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    state = again.state_dict()
    assert all(torch.equal(state[key], weight) for key, weight in model.state_dict().items())


def test_a_buffer_is_part_of_the_model() -> None:
    assert "final_logits_bias" in own_weights(tiny.model("bart"))
    weights = own_weights(tiny.model("gpt2"))
    assert len({weight.data_ptr() for weight in weights.values()}) == len(weights), "shared ones are there once"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64, torch.bool])
def test_a_file_is_one_of_safetensors(dtype: torch.dtype, tmp_path: Path) -> None:
    """Whatever the mixture of types, with a scalar, an empty tensor, and one that is not contiguous."""
    tensors: dict[str, Any] = {
        "whole": torch.arange(12).view(3, 4).T.to(dtype),
        "scalar": torch.tensor(3).to(dtype),
        "none": torch.empty(0, 5, dtype=dtype),
        "odd": torch.ones(3, dtype=torch.int8),
        "wide": torch.arange(5, dtype=torch.float64),
    }
    write_safetensors(tmp_path / "file.safetensors", tensors)
    found = load_file(tmp_path / "file.safetensors")
    assert found.keys() == tensors.keys()
    assert all(
        torch.equal(found[name], tensor) and found[name].dtype == tensor.dtype for name, tensor in tensors.items()
    )
    with safe_open(tmp_path / "file.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}
