"""This module reaches a model through what stands around it: an engine, an adapter, and a module that holds frozen
models beside it."""

from __future__ import annotations

from typing import Any, ClassVar, Self

from torch import nn


class Beside(nn.Module):
    """Holds a trained model and a frozen one beside it in one module, so that one engine wraps, shards and saves both.

    A subclass names its two parts, which are its submodules; the frozen one may be None."""

    trained_part: ClassVar[str]
    frozen_part: ClassVar[str]

    def train(self, mode: bool = True) -> Self:
        """Sets the mode of all parts but the frozen one, which stays in evaluation mode."""
        super().train(mode)
        frozen = getattr(self, self.frozen_part)
        if frozen is not None:
            frozen.eval()
        return self

    @property
    def trained(self) -> Any:
        """Returns the trained model."""
        return getattr(self, self.trained_part)

    # What engines ask a model for: how to divide it into layers, and which embeddings it shares.

    @property
    def _no_split_modules(self) -> set[str]:
        models = (getattr(self, part) for part in (self.trained_part, self.frozen_part))
        return {name for model in models for name in getattr(model, "_no_split_modules", None) or ()}

    def get_input_embeddings(self) -> Any:
        return self.trained.get_input_embeddings()

    def get_output_embeddings(self) -> Any:
        return self.trained.get_output_embeddings()


def unwrap(model: Any) -> Any:
    """Returns the model itself, whether or not an engine has wrapped it."""
    return getattr(model, "module", model)


def base_of(model: Any) -> Any:
    """Returns Transformers' own model, whether or not PEFT has wrapped it."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model
