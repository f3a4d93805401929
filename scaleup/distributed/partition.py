"""This module partitions a deferred model for ZeRO-3, one parameter after another: none is whole but for a moment."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from scaleup.distributed.deferred import fill_parameter


def partition(model: nn.Module, settings: dict[str, Any], dtype: torch.dtype) -> None:
    """Makes DeepSpeed's partitioned parameters of a model's, as its engine would do: it finds them done."""
    from deepspeed.runtime.zero.partition_parameters import Init

    Init(module=_InTurn(model, dtype), dtype=dtype, config_dict_or_path=settings)


class _InTurn(nn.Module):
    """Hands a model's parameters out one after another, and reads each when it is its turn. DeepSpeed has partitioned
    one before it asks for the next."""

    def __init__(self, model: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self._whole, self._dtype = [model], dtype  # in a list: no submodule

    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]:
        yield from in_turn(self._whole[0], self._dtype)


def in_turn(model: nn.Module, dtype: torch.dtype) -> Iterator[nn.Parameter]:
    """Yields a model's parameters, each of which is read, and cast to `dtype`, when it is asked for."""
    for parameter in model.parameters():
        fill_parameter(parameter, dtype=dtype)
        if parameter.is_floating_point() and parameter.dtype != dtype:
            parameter.data = parameter.data.to(dtype)
        yield parameter
