"""Libraries that compile what we never call: importing torch's compiler for them takes seconds in every worker."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def uncompiled() -> Iterator[None]:
    """What is imported here keeps the functions that it decorates with `torch.compile` as they are."""
    compile_it = torch.compile
    try:
        torch.compile = lambda model=None, **_: model or (lambda plain: plain)  # type: ignore[assignment]
        yield
    finally:
        torch.compile = compile_it
