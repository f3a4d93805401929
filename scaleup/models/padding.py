"""This module tells Transformers whether a batch has padding or packed rows, which the host knew when it made it.

To leave a mask out where nothing is padded or packed, Transformers 5 reads it, or the positions, in every forward pass,
and the host waits for the device to have come so far. Inside of `padding_known` it does not ask: what it decides, and
so every bit of what a model computes, is the same."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

import torch

_is_padded: bool | None = None
"""Is what holds now; None: unknown, and Transformers reads the mask."""


@contextmanager
def padding_known(is_padded: bool | None) -> Iterator[None]:
    """Tells forward passes inside whether their masks have padding or, where there is neither mask nor cache, rows hold
    several texts; None tells nothing. A padded batch that rows are taken out of stays one."""
    global _is_padded
    _teach()
    before, _is_padded = _is_padded, is_padded
    try:
        yield
    finally:
        _is_padded = before


def _teach() -> None:
    """Lets the functions of Transformers that read a mask, or positions, hear of it first. They are private: where they
    are gone or others, masks are read as before."""
    from transformers import masking_utils

    wrappers: dict[str, Callable[[Any], Any]] = {
        "_ignore_causal_mask_sdpa": _told_of_padding,
        "_ignore_bidirectional_mask_sdpa": _told_of_padding,
        "find_packed_sequence_indices": _told_of_packing,
    }
    for name, wrapper in wrappers.items():
        function = getattr(masking_utils, name, None)
        if function is not None and not hasattr(function, "__wrapped__"):
            setattr(masking_utils, name, wrapper(function))


def _told_of_padding(can_leave_out: Callable[..., bool]) -> Callable[..., bool]:
    """Returns a function that decides whether a mask can be left out, and does not look into one that is known."""

    @wraps(can_leave_out)
    def decide(padding_mask: torch.Tensor | None, *arguments: Any, **options: Any) -> bool:
        if _is_padded is None or padding_mask is None:
            return can_leave_out(padding_mask, *arguments, **options)
        return not _is_padded and can_leave_out(None, *arguments, **options)

    return decide


def _told_of_packing(find: Callable[..., torch.Tensor | None]) -> Callable[..., torch.Tensor | None]:
    """Returns a function of positions (B, S) that gives the number of each token's text within its row (B, S), from 0;
    None where every row is one text."""

    @wraps(find)
    def found(position_ids: torch.Tensor) -> torch.Tensor | None:
        if _is_padded is None:
            return find(position_ids)
        if not _is_padded:
            return None
        starts = torch.diff(position_ids, prepend=position_ids[:, :1] - 1) != 1
        return starts.cumsum(-1)

    return found
