"""This module lets a model that is trained be its own frozen reference."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

from torch import nn

from scaleup.models.adapters import initial_adapter, without_adapter


def as_reference(policy: Any, reference: Any | None, has_start: bool) -> AbstractContextManager[Any]:
    """Returns a context in which `reference or policy` is the policy as it was before training: a frozen copy is that
    always; an adapted model with the snapshot of its adapter if it `has_start`, or without its adapter."""
    if reference is not None:
        return nullcontext()
    return initial_adapter(policy) if has_start else without_adapter(policy)


def switch_dropout_off(model: nn.Module) -> None:
    """Set dropout to 0 in training mode too, which recomputation of activations needs: ratios of probabilities under
    dropout would be noise."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name, value in vars(module).items():
            if "dropout" in name and isinstance(value, float):
                setattr(module, name, 0.0)
