"""This module has Accelerate 1.15 shard by torch's FSDP2 as this project needs it: on CPUs, without frozen weights in
checkpoints, with outputs in float32, and with embeddings that are used in several places."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from accelerate.state import PartialState
from accelerate.utils import DistributedType


def low_precision(precision: str) -> Any:
    """Returns the policy of FSDP2 for bf16 and fp16; None where there is none. What a model returns stays as it is:
    Accelerate's own policy rounds losses and log-probabilities, which are float32, to 8 or 11 bits."""
    from torch.distributed.fsdp import MixedPrecisionPolicy

    types = {"bf16": torch.bfloat16, "fp16": torch.float16}
    if precision not in types:
        return None
    return MixedPrecisionPolicy(param_dtype=types[precision], reduce_dtype=types[precision])


@contextmanager
def without_frozen() -> Iterator[None]:
    """Replaces the private function from which Accelerate 1.15 has the options of torch's state dicts, which can leave
    frozen weights out: asked by itself, it would write a whole base model beside an adapter."""
    from accelerate.utils import fsdp_utils

    usual = fsdp_utils._prepare_sd_options
    fsdp_utils._prepare_sd_options = lambda plugin: replace(usual(plugin), ignore_frozen_params=True, strict=False)
    try:
        yield
    finally:
        fsdp_utils._prepare_sd_options = usual


def let_accelerate_shard_on_cpus() -> None:
    """Replaces the private method by which Accelerate 1.15 never turns FSDP on for CPUs, although torch's FSDP2 runs on
    gloo. Call it before an Accelerator is made."""
    os.environ["ACCELERATE_TORCH_DEVICE"] = "cpu"
    PartialState._prepare_backend = lambda *_, **__: ("gloo", DistributedType.MULTI_GPU)


def _embedding_is_in_use_elsewhere(model: Any) -> bool:
    """Returns whether the input embedding is shared by an encoder and a decoder; is part of something that Transformers
    says not to split, as BERT's is; or has rows that PEFT trains, in the head that shares it too: either then shows a
    weight of its own making."""
    rows = getattr(model.get_output_embeddings(), "token_adapter", None)
    if model.config.is_encoder_decoder or (rows is not None and rows.tied_adapter is not None):
        return True
    names, embedding = set(model._no_split_modules or ()), model.get_input_embeddings()
    blocks = (module for module in model.modules() if type(module).__name__ in names)
    return any(part is embedding for block in blocks for part in block.modules())


@contextmanager
def embeddings_left_to_the_root(model: Any) -> Iterator[None]:
    """Hides the input embedding from Accelerate 1.15, which shards it by itself, where it is used elsewhere: torch
    refuses one parameter in two groups. Hidden, it stays in the root's group, or in that of a block."""
    if not _embedding_is_in_use_elsewhere(model):
        yield
        return
    model.get_input_embeddings = model.get_output_embeddings = lambda: None
    try:
        yield
    finally:
        del model.get_input_embeddings, model.get_output_embeddings
