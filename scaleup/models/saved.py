"""This module writes a model as Transformers' `save_pretrained` does, without ever holding all of it: a weight that is
deferred is read when it is its turn, and forgotten once it is in its file.

What the files are called, which weights are left out and what a model's own format makes of them are Transformers'."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import nn

from scaleup.artifacts.files import write_json
from scaleup.distributed.deferred import value_of
from scaleup.models.stored import DTYPES

ALIGNMENT = 8


def save_model(model: Any, folder: Path, weights: Mapping[str, torch.Tensor], max_shard_size: str) -> None:
    """Writes config, generation config and weights of a model of Transformers, in several files and an index where they
    are more than `max_shard_size` (e.g. 5GB). `weights` are by their names in the model, of those that share one once;
    deferred ones are read one after another. The model's own, which may be sharded, are not looked at."""
    from huggingface_hub import split_torch_state_dict_into_shards
    from transformers.core_model_loading import revert_weight_conversion

    model.save_pretrained(str(folder), state_dict={})
    ignored = set(model._keys_to_ignore_on_save or ())
    state = {name: weight for name, weight in weights.items() if name not in ignored}
    state = revert_weight_conversion(model, state)
    shapes = {name: torch.empty_like(weight, device="meta") for name, weight in state.items()}
    split = split_torch_state_dict_into_shards(
        shapes, filename_pattern="model{suffix}.safetensors", max_shard_size=max_shard_size
    )
    for file, names in split.filename_to_tensors.items():
        write_safetensors(folder / file, {name: state[name] for name in names})
    if split.is_sharded:
        count = sum(weight.numel() for weight in state.values())
        index = {"metadata": {"total_parameters": count, **split.metadata}, "weight_map": split.tensor_to_filename}
        write_json(folder / "model.safetensors.index.json", index)


def own_weights(model: nn.Module) -> dict[str, torch.Tensor]:
    """Returns a model's parameters, shared ones once, and the buffers that are saved, by name."""
    return dict(model.named_parameters()) | saved_buffers(model)


def saved_buffers(model: nn.Module) -> dict[str, torch.Tensor]:
    """Returns the buffers that are part of a saved model, by name."""
    saved = model.state_dict(keep_vars=True).keys()
    return {name: buffer for name, buffer in model.named_buffers() if name in saved}


def write_safetensors(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Writes a safetensors file, one tensor after another, each read when it is its turn. (The format: eight bytes with
    the header's length, a JSON header, the values. The library wants all values at once.)"""
    names = {dtype: name for name, dtype in DTYPES.items()}
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    ordered = sorted(tensors.items(), key=lambda item: (-item[1].dtype.itemsize, item[0]))  # all are aligned
    end = 0
    for name, tensor in ordered:
        start, end = end, end + tensor.numel() * tensor.dtype.itemsize
        header[name] = {"dtype": names[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (math.ceil(len(text) / ALIGNMENT) * ALIGNMENT - len(text))
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for _, tensor in ordered:
            _append(file, tensor)


def _append(file: BinaryIO, tensor: torch.Tensor) -> None:
    """Writes a tensor's values, and has forgotten them when it returns."""
    values = value_of(tensor).detach().cpu().contiguous().reshape(-1)
    values.view(torch.uint8).numpy().tofile(file)
