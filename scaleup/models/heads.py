"""This module swaps a model's head for one that returns something other than logits where a forward pass wants that.

Only the class of the layer changes: it keeps its place, its parameters and their names, so every engine shards, gathers
and ties it as before. What it is to compute is told around a forward pass, since a model hands its head nothing but
hidden states."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn


class ToldHead(nn.Linear):
    """Computes logits like any linear head or, inside of `told`, what its subclass makes of the value that it is
    told."""

    value: Any = None

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Returns logits (B, S, V) of hidden states (B, S, H), or what `answer` returns."""
        return self.logits(hidden) if self.value is None else self.answer(hidden, self.value)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Returns logits (..., V) of hidden states (..., H)."""
        return super().forward(hidden)

    def answer(self, hidden: torch.Tensor, value: Any) -> Any:
        """Returns what stands in place of the logits, from hidden states (B, S, H) and what the head is told;
        subclasses define it."""
        raise NotImplementedError


class HiddenHead(ToldHead):
    """Returns its hidden states as they are; or, told a function of them, calls it while the head's weights are
    gathered."""

    value: Callable[[torch.Tensor], Any] | None = None

    def forward(self, hidden: torch.Tensor) -> Any:
        """Returns the hidden states (..., H), or what the function returns for them."""
        return hidden if self.value is None else self.value(hidden)


@contextmanager
def told(value: Any, *heads: ToldHead) -> Iterator[None]:
    """Makes forward passes inside use `value`, of the type that the heads' class wants; outside, the heads return
    logits."""
    for head in heads:
        head.value = value
    try:
        yield
    finally:
        for head in heads:
            head.value = None


def swap_head(head: nn.Module, kind: type[ToldHead]) -> None:
    """Turns a plain linear layer into a head of this class."""
    assert type(head) is nn.Linear, f"{type(head).__name__} is no plain linear layer"
    head.__class__ = kind


def has_plain_head(model: Any) -> bool:
    """Returns whether a language model's logits are a linear layer's own output: some models scale, cap or shift
    them."""
    head = model.get_output_embeddings()
    return type(head) is nn.Linear and _is_returned_as_is(model, head)


@torch.no_grad()
def _is_returned_as_is(model: Any, head: nn.Linear) -> bool:
    outputs: list[torch.Tensor] = []
    hook = head.register_forward_hook(lambda module, inputs, output: outputs.append(output))
    try:
        token = torch.zeros((1, 1), dtype=torch.long, device=head.weight.device)
        inputs = {"decoder_input_ids": token} if model.config.is_encoder_decoder else {}
        with _other_layers_left_out(model, head):
            logits = model(input_ids=token, **inputs, use_cache=False).logits
    finally:
        hook.remove()
    return len(outputs) == 1 and logits is outputs[0]


@contextmanager
def _other_layers_left_out(model: nn.Module, head: nn.Linear) -> Iterator[None]:
    """Makes all linear layers but the head return zeros inside: what becomes of the head's output does not hang on
    them, and their weights may have to be read from files, and quantized."""
    layers = [module for module in model.modules() if isinstance(module, nn.Linear) and module is not head]
    for layer in layers:
        layer.forward = partial(_zeros, layer)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def _zeros(layer: nn.Linear, x: torch.Tensor) -> torch.Tensor:
    return x.new_zeros(*x.shape[:-1], layer.out_features)
