"""Counts how often the host reads a value of the device: on a GPU it waits each time until the device has come so far.
On a CPU nothing waits, and the same operations are seen."""

from __future__ import annotations

import sys
from collections import Counter
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from tests.conftest import REPOSITORY

aten = torch.ops.aten
READS = {aten._local_scalar_dense.default, aten.nonzero.default, aten.masked_select.default, aten.equal.default}
"""Are `.item()`, `float()`, `bool()` and `int()` of a tensor, and what has a shape that depends on values."""
INDEXED = {
    aten.index.Tensor,
    aten.index_put.default,
    aten.index_put_.default,
    aten._index_put_impl_.default,
    aten._unsafe_index.Tensor,
}
COPIES = {torch.Tensor.tolist, torch.Tensor.cpu, torch.Tensor.numpy}
"""Copy from a GPU, and do nothing that an operation shows on a CPU."""


class HostReads(TorchDispatchMode):
    """Counts, inside of it, by where in the project (or else in a library) a value was asked for.

    What the optimizer asks of its own step counters does not count: they are on the CPU wherever the weights are."""

    def __init__(self, *elsewhere: str) -> None:
        """`elsewhere`: packages whose own reads do not count."""
        super().__init__()
        self.places: Counter[str] = Counter()
        self._ignored = ("/torch/optim/", *(f"/{package}/" for package in elsewhere))
        self._copies = _Copies(self)

    @property
    def count(self) -> int:
        return self.places.total()

    def __enter__(self) -> HostReads:
        self._copies.__enter__()
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._copies.__exit__(*error)

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        indices = args[1] if function in INDEXED else ()
        if function in READS or any(index is not None and index.dtype == torch.bool for index in indices):
            self.note(function.__name__)
        return function(*args, **(kwargs or {}))

    def note(self, what: str) -> None:
        """Count a read, unless it is ignored, at the innermost place within the project."""
        frame: Any = sys._getframe(1)
        files = []
        while frame is not None:
            files.append(f"{frame.f_code.co_filename}:{frame.f_lineno}")
            frame = frame.f_back
        if any(part in file for part in self._ignored for file in files):
            return
        ours = (file for file in files if file.startswith(f"{REPOSITORY}/scaleup/"))
        self.places[f"{what} at {next(ours, files[1])}"] += 1


class _Copies(TorchFunctionMode):
    def __init__(self, reads: HostReads) -> None:
        super().__init__()
        self._reads = reads

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function in COPIES:
            self._reads.note(function.__name__)
        return function(*args, **(kwargs or {}))
