"""This module cuts a loaded Hugging Face model in place: whole layers, MLP columns, heads. Weights and config change
together, so that `save_pretrained` writes an ordinary model that plain Transformers loads with the same logits.

A config has one number for all layers: what is kept of each must be equally much. Embeddings, heads over the vocabulary
and norms of the hidden states are never touched. It works on the meta device as well."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from scaleup.models.architecture import Architecture, Attention, Stack, architecture_of

PER_LAYER = ("layer_types", "mlp_layer_types", "no_rope_layers")
"""Lists the config keys with an entry a layer."""


@dataclass(frozen=True)
class HeadDims:
    """Holds the indices of the features of each head that are kept, (heads, width) both: queries and keys meet in one
    product, values and the output projection in another."""

    query_key: torch.Tensor
    value: torch.Tensor


def keep_layers(model: Any, layers: Sequence[int] | Mapping[str, Sequence[int]]) -> None:
    """Keeps these layers, in the model's order: of every stack the same, or by the stack's name (encoder, decoder).

    Raises ValueError where they are not distinct layers of the model, or none."""
    for stack in architecture_of(model).stacks:
        chosen = layers.get(stack.name) if isinstance(layers, Mapping) else layers
        if chosen is not None:
            _keep_in_stack(stack, _checked(chosen, len(stack.blocks), "layers"))


def keep_intermediate(model: Any, kept: Sequence[torch.Tensor]) -> None:
    """Keeps these MLP columns: indices for each layer, an encoder's layers first.

    Raises ValueError where they are not distinct columns, or not equally many in each layer."""
    architecture = architecture_of(model)
    size = architecture.intermediate_size
    chosen = _checked_all(kept, len(architecture.layers), size, "MLP columns")
    for layer, index in zip(architecture.layers, chosen, strict=True):
        for linear in layer.mlp.into:
            _select_out(linear, index)
        _select_in(layer.mlp.out, index)
        for module in layer.module.modules():
            _set_attributes(module, {"intermediate_size": len(index)})
    _set_config(architecture, {architecture.intermediate_key: len(chosen[0])})


def keep_kv_groups(model: Any, kept: Sequence[torch.Tensor]) -> None:
    """Keeps these key-value heads, each with the query heads that read it: indices for each attention, in the order of
    `Architecture.attentions`. In T5, where each head has its own keys, these are heads.

    Raises ValueError where they are not distinct heads, are not equally many in each attention, differ between
    self-attentions that share T5's relative bias, or where the architecture cannot have another number of them."""
    architecture = architecture_of(model)
    _refuse_fixed(architecture, "num_key_value_heads")
    chosen = _checked_all(kept, len(architecture.attentions), architecture.num_key_value_heads, "heads")
    _check_shared_bias(architecture, chosen)
    count, heads_per_group = len(chosen[0]), architecture.num_heads // architecture.num_key_value_heads
    width = architecture.head_dim
    for attention, groups in zip(architecture.attentions, chosen, strict=True):
        heads = _feature_indices(groups, heads_per_group)
        _select_out(attention.query, _feature_indices(heads, width))
        _select_out(attention.key, _feature_indices(groups, width))
        _select_out(attention.value, _feature_indices(groups, width))
        _select_in(attention.out, _feature_indices(heads, width))
        if attention.relative_bias is not None:
            attention.relative_bias.weight = _selected(attention.relative_bias.weight, 1, heads)
            attention.relative_bias.embedding_dim = len(heads)
        _set_attributes(attention.module, {"n_heads": len(heads), "inner_dim": len(heads) * width})
        _set_attributes(attention.module, {"num_heads": len(heads), "num_key_value_heads": count})
    # some architectures derive the width of a head where the config does not say it
    _set_config(architecture, {"num_attention_heads": count * heads_per_group, "head_dim": width})
    if hasattr(architecture.configs[0], "num_key_value_heads"):
        _set_config(architecture, {"num_key_value_heads": count})


def keep_head_dim(model: Any, kept: Sequence[HeadDims]) -> None:
    """Keeps these features of each head, for each attention in the order of `Architecture.attentions`. T5 alone stores
    the width of its heads and does not rotate them.

    Raises ValueError where the architecture cannot have another width, or the features are not equally many."""
    architecture = architecture_of(model)
    _refuse_fixed(architecture, "head_dim")
    width = architecture.head_dim
    flat = [(_head_feature_indices(dims.query_key, width), _head_feature_indices(dims.value, width)) for dims in kept]
    size = architecture.num_heads * width
    for part in zip(*flat, strict=True):
        _checked_all(part, len(architecture.attentions), size, "features of heads")
    new = kept[0].value.shape[1]
    if any(index.shape != (architecture.num_heads, new) for dims in kept for index in (dims.query_key, dims.value)):
        raise ValueError(f"features of heads: must be {architecture.num_heads} x {new} in every attention")
    for attention, (query_key, value) in zip(architecture.attentions, flat, strict=True):
        _select_out(attention.query, query_key)
        _select_out(attention.key, query_key)
        _select_out(attention.value, value)
        _select_in(attention.out, value)
        _set_attributes(attention.module, {"key_value_proj_dim": new, "inner_dim": architecture.num_heads * new})
    _set_config(architecture, {"head_dim": new})


def _keep_in_stack(stack: Stack, chosen: list[int]) -> None:
    old = len(stack.blocks)
    first, new_first = stack.layers[0], stack.layers[chosen[0]]
    blocks = [stack.blocks[index] for index in chosen]
    _move_bias(first.attentions[:1], new_first.attentions[:1])
    del stack.blocks[:]
    stack.blocks.extend(blocks)
    for place, block in enumerate(blocks):
        for module in block.modules():
            _set_attributes(module, {"layer_idx": place})
    for key in PER_LAYER:
        entries = getattr(stack.config, key, None)
        if isinstance(entries, list) and len(entries) == old:
            setattr(stack.config, key, [entries[index] for index in chosen])
    for config, key in stack.depth_keys:
        setattr(config, key, len(chosen))


def _move_bias(old: tuple[Attention, ...], new: tuple[Attention, ...]) -> None:
    """Moves T5's relative bias to the layer that comes first now: a stack's first layer has it, and all of the stack
    use it."""
    if old and old[0].relative_bias is not None and new[0].relative_bias is None:
        module: Any = new[0].module
        module.relative_attention_bias, module.has_relative_attention_bias = old[0].relative_bias, True


def _check_shared_bias(architecture: Architecture, chosen: Sequence[torch.Tensor]) -> None:
    shared: torch.Tensor | None = None
    for attention, heads in zip(architecture.attentions, chosen, strict=True):
        if attention.relative_bias is not None:
            shared = heads
        elif shared is not None and not attention.is_cross and not torch.equal(shared, heads):
            raise ValueError("heads: self-attentions that share a relative bias must keep the same")


def _refuse_fixed(architecture: Architecture, key: str) -> None:
    if key in architecture.fixed:
        raise ValueError(f"{key} cannot be changed: {architecture.fixed[key]}")


def _checked(chosen: Sequence[int], size: int, what: str) -> list[int]:
    ordered = sorted(int(index) for index in chosen)
    if not ordered or len(set(ordered)) < len(ordered) or ordered[0] < 0 or ordered[-1] >= size:
        raise ValueError(f"{what}: must be distinct numbers from 0 to {size - 1}, at least one, not {ordered[:20]}")
    return ordered


def _checked_all(kept: Sequence[torch.Tensor], count: int, size: int, what: str) -> list[torch.Tensor]:
    """Returns the indices in order. Raises ValueError unless there are `count` parts with equally many each."""
    ordered = [torch.tensor(_checked(index.tolist(), size, what)) for index in kept]
    if len(ordered) != count or len({len(index) for index in ordered}) != 1:
        raise ValueError(f"{what}: must be equally many for each of {count} parts")
    return ordered


def _feature_indices(index: torch.Tensor, width: int) -> torch.Tensor:
    """Returns the indices of the features of these parts, each part being `width` wide."""
    return (index[:, None] * width + torch.arange(width)).flatten()


def _head_feature_indices(dims: torch.Tensor, width: int) -> torch.Tensor:
    """Returns the indices of features of all heads, in order, from those (heads, kept) within each head."""
    return (dims.cpu().sort(dim=1).values + width * torch.arange(dims.shape[0])[:, None]).flatten()


def _select_out(linear: Any, index: torch.Tensor) -> None:
    """Keeps some output features of a Linear (out, in) or a Conv1D (in, out)."""
    is_conv = isinstance(linear, Conv1D)
    linear.weight = _selected(linear.weight, int(is_conv), index)
    if linear.bias is not None:
        linear.bias = _selected(linear.bias, 0, index)
    setattr(linear, "nf" if is_conv else "out_features", len(index))


def _select_in(linear: Any, index: torch.Tensor) -> None:
    is_conv = isinstance(linear, Conv1D)
    linear.weight = _selected(linear.weight, int(not is_conv), index)
    setattr(linear, "nx" if is_conv else "in_features", len(index))


def _selected(old: torch.Tensor, dim: int, index: torch.Tensor) -> nn.Parameter:
    return nn.Parameter(old.detach().index_select(dim, index.to(old.device)), requires_grad=old.requires_grad)


def _set_config(architecture: Architecture, values: Mapping[str, int]) -> None:
    for config in architecture.configs:
        for key, value in values.items():
            setattr(config, key, value)


def _set_attributes(module: Any, values: Mapping[str, int]) -> None:
    """Sets those attributes that the module has: what some modules remember of their config."""
    for name, value in values.items():
        if isinstance(getattr(module, name, None), int):
            setattr(module, name, value)
