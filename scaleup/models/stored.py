"""This module lets Transformers load a model without reading its weights: what it takes from a safetensors file are
deferred tensors, each of which maps its own part of the file when it is used.

Everything else of loading stays Transformers' own: which name in the files is which parameter, conversions, what is
tied, what is drawn, and what is missing or of another shape."""

from __future__ import annotations

import json
import mmap
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from math import prod
from pathlib import Path
from typing import Any, Self

import torch
from safetensors import safe_open

from scaleup.distributed.deferred import deferred

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""Maps the names of types in safetensors files to torch's."""


class StoredFile:
    """Takes the place of `safetensors.safe_open`: its slices are deferred tensors."""

    is_deferred = True

    def __init__(self, path: str | os.PathLike[str], framework: str = "pt", **options: Any) -> None:
        with safe_open(path, framework) as file:  # raises for a file that is not whole
            self._metadata = file.metadata()
        self._path = Path(path)
        with self._path.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            self._entries: dict[str, Any] = json.loads(stream.read(length))
        self._entries.pop("__metadata__", None)
        self._start = 8 + length

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None: ...

    def metadata(self) -> Any:
        return self._metadata

    def keys(self) -> list[str]:
        return list(self._entries)

    def get_slice(self, key: str) -> StoredSlice:
        return StoredSlice(self._path, self._start, self._entries[key], self.is_deferred)

    def get_tensor(self, key: str) -> torch.Tensor:
        return self.get_slice(key)[...]


class MappedFile(StoredFile):
    """Takes its place likewise, for values that are used at once: of `safe_open`, all that was read stays resident
    until the whole file is closed."""

    is_deferred = False


class StoredSlice:
    """Takes the place of what `safe_open` returns for a tensor of a file."""

    def __init__(self, path: Path, start: int, entry: dict[str, Any], is_deferred: bool) -> None:
        self._entry, self._is_deferred = entry, is_deferred
        self._place = path, start + entry["data_offsets"][0]

    def get_shape(self) -> list[int]:
        return list(self._entry["shape"])

    def get_dtype(self) -> str:
        return str(self._entry["dtype"])

    def __getitem__(self, index: Any) -> torch.Tensor:
        dtype, shape = DTYPES[self._entry["dtype"]], self._entry["shape"]
        read = partial(mapped, *self._place, shape, dtype)
        whole = deferred(read, shape, dtype) if self._is_deferred else read()
        return whole if index is ... else whole[index]


def mapped(path: Path, offset: int, shape: list[int], dtype: torch.dtype) -> torch.Tensor:
    """Returns a tensor of a file as a private mapping: what is not touched is not in memory, what is written is copied,
    and all of it is given back with the tensor."""
    count = prod(shape)
    if not count:
        return torch.empty(shape, dtype=dtype)
    first = offset // mmap.ALLOCATIONGRANULARITY * mmap.ALLOCATIONGRANULARITY
    size = offset - first + count * dtype.itemsize
    with path.open("rb") as file:
        view = mmap.mmap(file.fileno(), size, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE, offset=first)
    return torch.frombuffer(view, dtype=dtype, count=count, offset=offset - first).view(shape)


def deferred_files() -> AbstractContextManager[None]:
    """Makes `from_pretrained` inside take deferred tensors from its files."""
    return _files(StoredFile)


def mapped_files() -> AbstractContextManager[None]:
    """Makes `from_pretrained` inside map each tensor of its files by itself: what is read to be quantized is given back
    at once."""
    return _files(MappedFile)


@contextmanager
def _files(kind: type[StoredFile]) -> Iterator[None]:
    from transformers import modeling_utils

    before = modeling_utils.safe_open
    modeling_utils.safe_open = kind
    try:
        yield
    finally:
        modeling_utils.safe_open = before
