"""This module reaches what an optimizer steps on this rank, and the gradients that it would step with: of whole
parameters, of shards, or of flat tensors in which several are laid out. By then gradients are reduced over ranks,
unscaled and clipped, under every strategy."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch


def parts_of(optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    """Returns the tensors that an optimizer steps."""
    return [part for group in optimizer.param_groups for part in group["params"]]


def local_part(tensor: torch.Tensor) -> torch.Tensor:
    """Returns what this rank holds of a tensor, which FSDP2 may have sharded."""
    part: torch.Tensor = getattr(tensor, "_local_tensor", tensor)
    return part


@contextmanager
def gradients_taken(
    optimizer: torch.optim.Optimizer, use: Callable[[torch.Tensor, torch.Tensor], None]
) -> Iterator[None]:
    """Makes the optimizer's steps inside call `use` with each tensor and what this rank holds of its gradient, and move
    nothing: an optimizer leaves out what has no gradient."""
    hidden: dict[torch.Tensor, torch.Tensor] = {}

    @torch.no_grad()
    def take(*_: Any) -> None:
        for part in parts_of(optimizer):
            if part.grad is not None:
                use(part, local_part(part.grad))
                hidden[part], part.grad = part.grad, None

    def give_back(*_: Any) -> None:
        for part, gradient in hidden.items():
            part.grad = gradient
        hidden.clear()

    handles = optimizer.register_step_pre_hook(take), optimizer.register_step_post_hook(give_back)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
