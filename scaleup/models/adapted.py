"""This module takes a config's model and its facts, and returns the model as a stage uses it: base weights, quantized
or not, and the adapter on top."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from scaleup.config.adapters import AnyAdapter, Quantization
from scaleup.config.schema import ModelConfig
from scaleup.distributed.allocator import large_blocks_given_back
from scaleup.distributed.deferred import fill
from scaleup.models.adapters import adapt, load_adapter, load_side_by_side, use_adapter
from scaleup.models.load import load_model, load_tokenizer
from scaleup.models.quantized import keep_as_loaded, loading_options
from scaleup.models.sources import materialize_tokenizer
from scaleup.plan.facts import ModelFacts
from scaleup.plan.model_path import adapter_folder, tokenizer_beside


def load_base(
    model: ModelConfig,
    facts: ModelFacts,
    quantization: Quantization | None,
    mixed_precision: str,
    device: torch.device,
    deferred: bool = False,
) -> Any:
    """Loads the weights at `facts.location` alone: on the CPU, or quantized on `device`. If `deferred`, all but those
    in 8 bits are read when an engine prepares the model."""
    if quantization is None:
        return load_model(model, facts, deferred=deferred)
    options = loading_options(quantization, mixed_precision, device, facts.task)
    with large_blocks_given_back():  # each matrix, in float32, before it is quantized
        loaded = load_model(model, facts, quantized=options, deferred=deferred)
    keep_as_loaded(loaded)
    return loaded


def make_trainable(model: Any, facts: ModelFacts, adapter: AnyAdapter | None, tokenizer: str | None = None) -> Any:
    """Returns the model with a new adapter, with the one that the model's path names, or as it is: then all of it is
    trained. `tokenizer` is the config's own, if it names one."""
    if adapter is not None:
        own = materialize_tokenizer(tokenizer) if tokenizer else None
        return adapt(model, adapter, facts.task, own or facts.tokenizer_at, facts.new_token_ids)
    return load_adapter(model, Path(facts.adapter), trainable=True) if facts.adapter else model


def load_finished(
    model: ModelConfig,
    facts: ModelFacts,
    quantization: Quantization | None,
    mixed_precision: str,
    device: torch.device,
    deferred: bool = False,
) -> Any:
    """Loads the model on `device` in evaluation mode, with the adapter that the model's path names; if `deferred`, for
    an engine that prepares it."""
    loaded = load_base(model, facts, quantization, mixed_precision, device, deferred=True)
    if not deferred:
        with large_blocks_given_back():
            fill(loaded, device)
        loaded = loaded if quantization else loaded.to(device)  # buffers
    return (load_adapter(loaded, Path(facts.adapter), trainable=False) if facts.adapter else loaded).eval()


def each_adapter(
    base: Any, model: ModelConfig, facts: ModelFacts, adapters: Mapping[str, str]
) -> Iterator[tuple[str, Any, PreTrainedTokenizerBase]]:
    """Yields name, model and tokenizer for each adapter of a config, in turn: one model, on which the next adapter
    becomes active."""
    folders = {name: adapter_folder(path) for name, path in adapters.items()}
    saved = {name: folder for name, folder in folders.items() if folder is not None}
    assert saved.keys() == adapters.keys(), "the plan has looked for them"
    adapted = load_side_by_side(base, saved)
    for number, (name, folder) in enumerate(saved.items()):
        use_adapter(adapted, number)
        yield name, adapted, load_tokenizer(model, str(tokenizer_beside(folder) or facts.location))
