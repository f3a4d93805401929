"""This module puts other kernels under a model that is to be trained: compiled layers, or Liger's. Parameters, their
names and the modules that hold them stay as they are, so engines and checkpoints know nothing of it."""

from __future__ import annotations

from typing import Any

from scaleup.models.beside import base_of


def compile_layers(model: Any) -> None:
    """Compiles each of the layers that Transformers says not to split, by itself and for all lengths: one graph serves
    all layers alike, and what stands around them (the head that gives the loss, adapters of embeddings) stays as it
    is. torch compiles with the first forward pass, once for batches with a mask and once for those without."""
    names = set(base_of(model)._no_split_modules or ())
    for module in model.modules():
        if type(module).__name__ in names:
            module.compile(dynamic=True)


def use_liger(model: Any) -> None:
    """Puts Liger's norms, rotations and MLPs (Hsu et al. 2024) into the model, and not its loss: the head computes that
    in chunks of its own (train/head_loss.py). Only after the head was fused, which runs a token through the model on
    the CPU."""
    from transformers.integrations.liger import apply_liger_kernel

    apply_liger_kernel(model, {"cross_entropy": False, "fused_linear_cross_entropy": False})
