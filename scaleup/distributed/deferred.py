"""This module holds tensors that are read when they are used: a model made of them takes no memory until an engine asks
for its weights, one after another.

A `Deferred` knows where its values come from, and its shape. What only moves or casts values (slices, copies, joins of
a model's conversions) is deferred as well; any other operation reads its arguments, computes and forgets them. So
adapters, heads, copies of a model and `fully_shard` see an ordinary model, and no rank ever has more of it in memory
than it keeps, and the parameter at hand."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from copy import deepcopy
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_map_only

aten: Any = torch.ops.aten

MOVED = frozenset(
    {
        *(aten._to_copy.default, aten.clone.default, aten.cat.default, aten.stack.default, aten.index_select.default),
        *(aten.split.Tensor, aten.split_with_sizes.default, aten.unbind.int, aten.slice.Tensor, aten.select.int),
        *(aten.transpose.int, aten.permute.default, aten.t.default, aten.view.default, aten._unsafe_view.default),
        *(aten.unsqueeze.default, aten.squeeze.dim, aten.expand.default),
    }
)
"""Lists operations that move or cast values: their results are deferred too."""
SHAPED = frozenset(
    {
        *(aten.empty_like.default, aten.zeros_like.default, aten.ones_like.default, aten.rand_like.default),
        *(aten.randn_like.default, aten.full_like.default, aten.new_empty.default, aten.new_zeros.default),
        *(aten.new_ones.default, aten.new_full.default, aten.new_empty_strided.default),
    }
)
"""Lists operations that take a tensor for its shape, type and device alone."""


PARTS = frozenset({aten.split.Tensor, aten.split_with_sizes.default, aten.slice.Tensor, aten.select.int})
"""Lists those of them that take a part: of a tensor that is cast, the part alone is."""
ROWS = 1024
"""Counts the rows that are compared at a time."""


class _Source:
    """Is where values come from: a function that reads them each time, or what was written in their place."""

    def __init__(self, read: Callable[[], torch.Tensor], is_part: bool = False, cast: _Cast | None = None) -> None:
        self._read, self._is_part, self._cast = read, is_part, cast
        self._written: torch.Tensor | None = None

    @property
    def cast(self) -> _Cast | None:
        """Returns, of values that are another source's in another type, that source and the options of the cast."""
        return self._cast if self._written is None else None

    def value(self) -> torch.Tensor:
        return self._read() if self._written is None else self._written

    def writable(self) -> torch.Tensor:
        """Returns the values, which stay from now on: something writes into them."""
        if self._written is None:
            assert not self._is_part, "a part of a deferred tensor cannot be written: the whole would not know"
            self._written = self._read().clone()
        return self._written

    def kept(self) -> torch.Tensor:
        """Returns the values, which stay from now on: they will be wanted again."""
        if self._written is None:
            self._written = self._read()
        return self._written

    def copied(self) -> _Source:
        copy = _Source(self._read, self._is_part, self._cast)
        copy._written = deepcopy(self._written)
        return copy


_Cast = tuple[_Source, dict[str, Any]]


class Deferred(torch.Tensor):
    """Is a tensor, or a parameter, whose values are read whenever they are used, and not kept."""

    source: _Source
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, source: _Source, like: torch.Tensor, device: torch.device | None = None) -> Deferred:
        made: Deferred = torch.Tensor._make_wrapper_subclass(
            cls, like.shape, strides=like.stride(), dtype=like.dtype, device=device or like.device
        )
        made.source = source
        return made

    def __repr__(self) -> str:  # type: ignore[override]
        return f"Deferred(shape={tuple(self.shape)}, dtype={self.dtype}, device={self.device})"

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        if id(self) not in memo:
            copy = type(self)(self.source.copied(), self)
            memo[id(self)] = nn.Parameter(copy, self.requires_grad) if isinstance(self, nn.Parameter) else copy
            vars(memo[id(self)]).update(_attributes(self))
        return memo[id(self)]

    def data_ptr(self) -> int:
        """Returns a number of its own: Accelerate finds an optimizer's parameters again by it."""
        return id(self)

    @property
    def data(self) -> Any:
        return self.detach()

    @data.setter
    def data(self, other: torch.Tensor) -> None:
        with torch.no_grad():
            _become(self, other)

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in (aten.detach.default, aten.alias.default):
            return type(args[0])(args[0].source, args[0])
        if func in MOVED:
            return _moved(func, args, kwargs)
        if func in SHAPED:
            return func(*_shapes(args), **{"device": args[0].device} | _given(kwargs))
        if func is aten.equal.default:
            return _are_equal(*args)
        if func._schema.is_mutable:
            return _written(func, args, kwargs)
        return func(*_values(args), **_values(kwargs))


def deferred(
    read: Callable[[], torch.Tensor],
    shape: Iterable[int],
    dtype: torch.dtype,
    device: torch.device | None = None,
    kind: type[Deferred] = Deferred,
) -> Deferred:
    """Returns a tensor of this shape and type, by default on the CPU, which `read` returns every time it is called."""
    like = torch.empty(tuple(shape), dtype=dtype, device="meta")
    return kind(_Source(read), like, device or torch.device("cpu"))


def value_of(tensor: torch.Tensor) -> torch.Tensor:
    """Returns a tensor's values: those of a deferred one are read now, and not kept."""
    return tensor.source.value() if isinstance(tensor, Deferred) else tensor


def is_deferred(model: nn.Module) -> bool:
    """Returns whether a model has parameters that have not been read."""
    return any(isinstance(parameter, Deferred) for parameter in model.parameters())


@torch.no_grad()
def fill(model: nn.Module, device: torch.device | None = None, dtype: torch.dtype | None = None) -> None:
    """Reads a model's deferred parameters one after another, casts them to `dtype` and puts them onto `device`."""
    for parameter in model.parameters():
        fill_parameter(parameter, device, dtype)


@torch.no_grad()
def fill_parameter(
    parameter: nn.Parameter, device: torch.device | None = None, dtype: torch.dtype | None = None
) -> None:
    """Reads a parameter, if it is deferred. It stays the same object: optimizers and modules go on to hold it. One that
    is read as a parameter of a class of its own, a quantized one, becomes that, where and as it is."""
    if isinstance(parameter, Deferred):
        cast, value = dtype if parameter.is_floating_point() else None, parameter.source.value()
        if not isinstance(value, nn.Parameter):
            value = value.to(device or parameter.device, cast or parameter.dtype)
        _become(parameter, value)


def fill_buffers(model: nn.Module) -> None:
    """Reads a model's deferred buffers: they are small, and no engine shards them."""
    for module in model.modules():
        for name, buffer in module._buffers.items():
            if isinstance(buffer, Deferred):
                module._buffers[name] = buffer.source.value().clone()


def _become(parameter: Deferred, other: torch.Tensor) -> None:
    """Makes a parameter another tensor, without another object."""
    if not isinstance(parameter, nn.Parameter):
        new = other.detach()
    else:
        new = other if isinstance(other, nn.Parameter) else nn.Parameter(other, parameter.requires_grad)
    vars(new).update(_attributes(parameter) | vars(new))
    torch.utils.swap_tensors(parameter, new)


def _attributes(tensor: Deferred) -> dict[str, Any]:
    """Returns what others have set on a tensor."""
    return {name: value for name, value in vars(tensor).items() if name not in ("source", "_is_param")}


def _moved(func: Any, args: Any, kwargs: Any) -> Any:
    """Returns the deferred result, or results, of an operation."""
    device = kwargs.get("device") or _first(args).device
    on_meta = {"device": torch.device("meta")} if "device" in kwargs else {}
    like = func(*_shapes(args), **{**kwargs, **on_meta})
    is_copy = func in (aten._to_copy.default, aten.clone.default, aten.cat.default, aten.stack.default)

    def source(number: int | None) -> _Source:
        cast = (args[0].source, kwargs) if func is aten._to_copy.default else None
        return _Source(partial(_read, number, func, args, kwargs), not is_copy, cast)

    if isinstance(like, torch.Tensor):
        return Deferred(source(None), like, device)
    return [Deferred(source(number), each, device) for number, each in enumerate(like)]


def _read(number: int | None, func: Any, args: Any, kwargs: Any) -> torch.Tensor:
    """Returns the result of an operation, or the one with this number. A part of what is cast is cast alone."""
    cast = args[0].source.cast if func in PARTS else None
    values = _values(args) if cast is None else (cast[0].value(), *args[1:])
    result = func(*values, **kwargs)
    part: torch.Tensor = result if number is None else result[number]
    return part if cast is None else aten._to_copy.default(part, **cast[1])


def _are_equal(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Returns whether two tensors are equal, of which some rows are read at a time."""
    if one.shape != other.shape or not one.dim():
        return bool(torch.equal(*_values((one, other))))
    return all(torch.equal(*_values(pair)) for pair in zip(one.split(ROWS), other.split(ROWS), strict=True))


def _written(func: Any, args: Any, kwargs: Any) -> Any:
    """Runs an operation in place: what it writes into is read and kept from then on."""
    writes = [each.alias_info is not None and each.alias_info.is_write for each in func._schema.arguments]
    real = [
        tree_map_only(Deferred, lambda tensor: tensor.source.writable(), arg) if is_written else _values(arg)
        for arg, is_written in zip(args, writes, strict=False)
    ]
    result = func(*real, **_values(kwargs))
    return args[0] if writes[0] and result is real[0] else result


def _first(args: Any) -> Deferred:
    found: list[Deferred] = []
    tree_map_only(Deferred, found.append, args)
    return found[0]


def _given(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in kwargs.items() if value is not None}


def _values(args: Any) -> Any:
    return tree_map_only(Deferred, lambda tensor: tensor.source.value(), args)


def _shapes(args: Any) -> Any:
    """Returns arguments with tensors without storage in place of all that are there."""
    return tree_map_only(
        torch.Tensor,
        lambda tensor: torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta"),
        args,
    )
