"""This module takes a Hugging Face model and returns where the parts lie that can be cut: stacks of layers, each
layer's attentions and MLP.

It knows decoders built like Llama (Qwen 2 and 3, Mistral, Gemma, SmolLM: recognised by their modules, not by name),
GPT-2, BERT and RoBERTa, T5 and mT5."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from torch import nn
from transformers.pytorch_utils import Conv1D

from scaleup.errors import ScaleupError

KNOWN = "decoders built like llama (qwen2, qwen3, mistral, gemma), gpt2, bert, roberta and t5"


@dataclass(frozen=True)
class Attention:
    """Holds the projections (in -> out features) of one attention: query, key and value hidden -> heads * width, out
    back."""

    module: nn.Module
    query: nn.Module
    key: nn.Module
    value: nn.Module
    out: nn.Module
    relative_bias: nn.Embedding | None = None
    """Is T5's relative bias, (buckets, heads): a stack's first self-attention has it, and the others use what it
    computes."""
    is_cross: bool = False


@dataclass(frozen=True)
class Mlp:
    """Holds the projections of an MLP: `into` are those hidden -> intermediate (gate and up, for example), `out` goes
    back."""

    into: tuple[nn.Module, ...]
    out: nn.Module


@dataclass(frozen=True)
class Layer:
    """Holds one layer, its MLP and its attentions."""

    module: nn.Module
    mlp: Mlp
    attentions: tuple[Attention, ...] = ()
    """Holds the attentions whose heads can be cut: none in architectures that derive the width of a head from the
    number of heads."""


@dataclass(frozen=True)
class Stack:
    """Holds one run of layers over the same hidden states; an encoder-decoder model has two."""

    name: str
    blocks: nn.ModuleList
    layers: tuple[Layer, ...]
    config: Any
    """Is the stack's config: the model's own, or a copy of it in T5."""
    depth_keys: tuple[tuple[Any, str], ...]
    """Lists each (config, key) that holds the number of layers."""


@dataclass(frozen=True)
class Architecture:
    """Holds a model's stacks, and the sizes that all of its layers share."""

    stacks: tuple[Stack, ...]
    intermediate_key: str
    """Is the config key of the MLPs' intermediate size."""
    num_heads: int
    num_key_value_heads: int
    head_dim: int
    fixed: dict[str, str] = field(default_factory=dict)
    """Maps what of layers, num_key_value_heads and head_dim cannot be changed to the reason."""

    @property
    def layers(self) -> tuple[Layer, ...]:
        """Returns the layers of all stacks, an encoder's first."""
        return tuple(layer for stack in self.stacks for layer in stack.layers)

    @property
    def attentions(self) -> tuple[Attention, ...]:
        """Returns the attentions of all layers in order; a T5 decoder layer has two, its own and the one over the
        encoder's states."""
        return tuple(attention for layer in self.layers for attention in layer.attentions)

    @property
    def intermediate_size(self) -> int:
        return out_features(self.layers[0].mlp.into[0])

    @property
    def configs(self) -> list[Any]:
        """Returns the model's config and its stacks' copies, each once."""
        configs = [pair[0] for stack in self.stacks for pair in stack.depth_keys]
        configs += [stack.config for stack in self.stacks]
        return list({id(config): config for config in configs}.values())


ROTARY = "rotary frequencies depend on the width of a head"
DERIVED = "{} has no width of heads of its own: it is the hidden width divided by their number"


def architecture_of(model: Any, where: str = "model.path") -> Architecture:
    """Returns where a model's parts lie. Raises ScaleupError at `where` for a model whose parts are not known."""
    base, config = model.base_model, model.config
    kind = config.model_type
    if kind in ("t5", "mt5"):
        return _t5(base, config)
    try:
        if kind == "gpt2":
            return _gpt2(base, config)
        if kind in ("bert", "roberta"):
            return _bert(base, config)
        return _llama_like(base, config)
    except (AttributeError, LookupError, TypeError):
        what = f"it is not known how {type(model).__name__} ({kind}) is built"
        raise ScaleupError.of(where, what, f"use one of {KNOWN}") from None


def out_features(linear: Any) -> int:
    return int(linear.nf if isinstance(linear, Conv1D) else linear.out_features)


def _llama_like(base: Any, config: Any) -> Architecture:
    width = getattr(base.layers[0].self_attn, "head_dim", None) or config.hidden_size // config.num_attention_heads
    layers = []
    for block in base.layers:
        attn, mlp = block.self_attn, block.mlp
        attention = Attention(attn, attn.q_proj, attn.k_proj, attn.v_proj, attn.o_proj)
        layers.append(Layer(block, Mlp((mlp.gate_proj, mlp.up_proj), mlp.down_proj), (attention,)))
        if unknown := list(_unknown_parameters(block, layers[-1], width, config.hidden_size)):
            raise LookupError(unknown)  # experts, a second branch, sinks, norms over all heads
    heads = config.num_attention_heads
    groups = getattr(config, "num_key_value_heads", None) or heads
    stack = Stack("decoder", base.layers, tuple(layers), config, ((config, "num_hidden_layers"),))
    return Architecture((stack,), "intermediate_size", heads, groups, width, {"head_dim": ROTARY})


def _unknown_parameters(block: nn.Module, layer: Layer, head_dim: int, hidden_size: int) -> Iterator[str]:
    """Yields the parameters of a layer that are neither in its projections nor norms of hidden states or single
    heads."""
    attention = layer.attentions[0]
    parts = (attention.query, attention.key, attention.value, attention.out, *layer.mlp.into, layer.mlp.out)
    if any(type(part) is not nn.Linear for part in parts):
        yield "projections that are no plain nn.Linear"
    cut = {parameter for part in parts for parameter in part.parameters()}
    for name, parameter in block.named_parameters():
        is_inner = name.startswith("self_attn.")
        is_norm = "norm" in name and parameter.shape == ((head_dim if is_inner else hidden_size),)
        if parameter not in cut and not is_norm:
            yield name


def _gpt2(base: Any, config: Any) -> Architecture:
    layers = tuple(Layer(block, Mlp((block.mlp.c_fc,), block.mlp.c_proj)) for block in base.h)
    fixed = {key: DERIVED.format("GPT-2") for key in ("num_key_value_heads", "head_dim")}
    if config.scale_attn_by_inverse_layer_idx:
        fixed["layers"] = "scale_attn_by_inverse_layer_idx scales each layer by its number"
    return _without_heads(Stack("decoder", base.h, layers, config, ((config, "n_layer"),)), "n_inner", fixed)


def _bert(base: Any, config: Any) -> Architecture:
    blocks = base.encoder.layer
    layers = tuple(Layer(block, Mlp((block.intermediate.dense,), block.output.dense)) for block in blocks)
    fixed = {key: DERIVED.format("BERT") for key in ("num_key_value_heads", "head_dim")}
    stack = Stack("encoder", blocks, layers, config, ((config, "num_hidden_layers"),))
    return _without_heads(stack, "intermediate_size", fixed)


def _without_heads(stack: Stack, intermediate_key: str, fixed: dict[str, str]) -> Architecture:
    heads = stack.config.num_attention_heads
    return Architecture((stack,), intermediate_key, heads, heads, stack.config.hidden_size // heads, fixed)


def _t5(base: Any, config: Any) -> Architecture:
    stacks = [_t5_stack("encoder", base.encoder, ((config, "num_layers"), (base.encoder.config, "num_layers")))]
    if hasattr(base, "decoder"):
        # each stack has a copy of the config; only the model's is saved, and tells the two depths apart
        keys = [(base.decoder.config, "num_layers")]
        keys += [(copy, "num_decoder_layers") for copy in (config, base.encoder.config, base.decoder.config)]
        stacks.append(_t5_stack("decoder", base.decoder, tuple(keys)))
    return Architecture(tuple(stacks), "d_ff", config.num_heads, config.num_heads, config.d_kv)


def _t5_stack(name: str, stack: Any, depth_keys: tuple[tuple[Any, str], ...]) -> Stack:
    layers = []
    for block in stack.block:
        attentions = [_t5_attention(block.layer[0].SelfAttention)]
        if stack.is_decoder:
            attentions.append(_t5_attention(block.layer[1].EncDecAttention, is_cross=True))
        dense = block.layer[-1].DenseReluDense
        into = (dense.wi_0, dense.wi_1) if hasattr(dense, "wi_0") else (dense.wi,)
        layers.append(Layer(block, Mlp(into, dense.wo), tuple(attentions)))
    return Stack(name, stack.block, tuple(layers), stack.config, depth_keys)


def _t5_attention(module: Any, is_cross: bool = False) -> Attention:
    bias = getattr(module, "relative_attention_bias", None)
    return Attention(module, module.q, module.k, module.v, module.o, bias, is_cross)
