"""This module takes two models, returns hidden states of their layers, and the distance between them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from scaleup.config.stages.distill import HiddenSettings
from scaleup.models.architecture import architecture_of
from scaleup.models.beside import base_of
from scaleup.models.classifier import is_sequence_classifier


def layer_pairs(settings: HiddenSettings, num_student: int, num_teacher: int) -> list[tuple[int, int]]:
    """Returns (student's layer, teacher's layer), from 0: those of the config, or each of the student's with the one
    that stands at the same share of the teacher's depth."""
    if settings.layers is not None:
        return settings.layers
    return [(layer, (layer + 1) * num_teacher // num_student - 1) for layer in range(num_student)]


def layers_of(model: Any) -> nn.ModuleList:
    """Returns the layers of a causal model, of an encoder-decoder's decoder, or of a classifier. Raises ScaleupError
    for a classifier whose architecture is not known."""
    base = base_of(model)
    if is_sequence_classifier(base):
        return architecture_of(base).stacks[-1].blocks
    stack = base.get_decoder()
    lists = [child for child in stack.children() if isinstance(child, nn.ModuleList)]
    assert lists, f"{type(stack).__name__} has no list of layers"
    return max(lists, key=len)


@contextmanager
def outputs_of(model: Any, numbers: Iterable[int]) -> Iterator[dict[int, torch.Tensor]]:
    """Collects the output (B, S, H) of each of these layers, by its number, in the forward pass inside. A model's own
    `hidden_states[-1]` is behind the final norm, and so not its last layer's."""
    outputs: dict[int, torch.Tensor] = {}

    def keep(number: int, module: nn.Module, inputs: Any, output: Any) -> None:
        outputs[number] = output[0] if isinstance(output, tuple) else output

    wanted = sorted(set(numbers))
    hooks = [layers_of(model)[number].register_forward_hook(partial(keep, number)) for number in wanted]
    try:
        yield outputs
    finally:
        for hook in hooks:
            hook.remove()


def distance_sum(
    student: torch.Tensor, teacher: torch.Tensor, kind: str, weights: torch.Tensor | None = None
) -> torch.Tensor:
    """Returns the distance of hidden states (N, H) summed over positions, weighted by `weights` (N) if given, a float32
    scalar.

    `kind` is mse, the squared difference in the mean over the width, or cosine, 1 - cos."""
    one, other = student.float(), teacher.float()
    distances = 1 - F.cosine_similarity(one, other, dim=-1) if kind == "cosine" else (one - other).square().mean(dim=-1)
    return (distances if weights is None else distances * weights).sum()
