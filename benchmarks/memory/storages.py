"""Bytes behind tensors: of some, of all that are alive, and the most there ever were.."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Storages:
    """Adds up the bytes behind tensors, each storage once."""

    def __init__(self) -> None:
        self.seen: set[int] = set()

    def add(self, tensors: Iterable[Any]) -> int:
        total = 0
        for storage in map(storage_of, tensors):
            if storage is not None and storage.data_ptr() not in self.seen:
                self.seen.add(storage.data_ptr())
                total += storage.nbytes()
        return total


def storage_of(tensor: Any) -> torch.UntypedStorage | None:
    """None where nothing is stored: on the meta device, or in a tensor that is sharded to nothing."""
    local = tensor._local_tensor if isinstance(tensor, DTensor) else tensor
    if local.device.type == "meta" or "Fake" in type(local).__name__ or not local.untyped_storage().data_ptr():
        return None
    return local.untyped_storage()


class Peak(TorchDispatchMode):
    """The largest sum of all storages alive after any operation. Starts from those alive now."""

    def __init__(self, alive: Iterable[torch.Tensor]) -> None:
        super().__init__()
        self.alive = weakref.WeakSet(storage for storage in map(storage_of, alive) if storage is not None)
        self.bytes = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor) and (storage := storage_of(leaf)) is not None:
                self.alive.add(storage)
        sizes = {storage.data_ptr(): storage.nbytes() for storage in self.alive}
        self.bytes = max(self.bytes, sum(sizes.values()))
        return result


class Sent(TorchDispatchMode):
    """The bytes that a rank sends in collectives, if each were done in a ring: an all-reduce of S bytes over N ranks
    takes 2 (N - 1) / N S, an all-gather to S bytes or a reduce-scatter from them (N - 1) / N S (Thakur et al. 2005).
    What ranks tell each other of a step (losses, norms) is in it, and is a few hundred bytes."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function.namespace in ("c10d", "_c10d_functional"):
            self._count(function.name().partition("::")[2].partition(".")[0], args)
        return function(*args, **(kwargs or {}))

    def _count(self, name: str, args: Any) -> None:
        world = torch.distributed.get_world_size()
        sizes = [tensor.nbytes for tensor in tree_leaves(args[:2]) if isinstance(tensor, torch.Tensor)]
        if sizes and "wait" not in name:
            passes = 2 if "reduce" in name and "scatter" not in name else 1
            self.bytes += passes * (world - 1) * max(sizes) // world


def tensors_in(value: Any, depth: int = 4) -> Iterator[torch.Tensor]:
    """In lists, dictionaries and DeepSpeed's own little classes."""
    if isinstance(value, torch.Tensor):
        yield value
    elif depth and value is not None:
        is_theirs = type(value).__module__.startswith("deepspeed") and hasattr(value, "__dict__")
        inner = value.values() if isinstance(value, dict) else vars(value).values() if is_theirs else value
        for item in inner if isinstance(value, dict | list | tuple) or is_theirs else ():
            yield from tensors_in(item, depth - 1)


def everything(known: set[int]) -> list[torch.Tensor]:
    """All tensors alive that were not there before the model."""
    return [value for value in gc.get_objects() if isinstance(value, torch.Tensor) and id(value) not in known]
