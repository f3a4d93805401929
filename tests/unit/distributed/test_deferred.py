from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from torch import nn

from scaleup.distributed.deferred import Deferred, deferred, fill, fill_buffers, is_deferred


class Stored:
    """Values that count how often they are read."""

    def __init__(self, *shape: int, dtype: torch.dtype = torch.float32) -> None:
        self.values = torch.arange(torch.Size(shape).numel(), dtype=dtype).reshape(shape)
        self.reads = 0

    def read(self) -> torch.Tensor:
        self.reads += 1
        return self.values

    @property
    def tensor(self) -> Deferred:
        return deferred(self.read, self.values.shape, self.values.dtype)


def test_what_moves_or_casts_reads_nothing() -> None:
    stored = Stored(6, 6, dtype=torch.bfloat16)
    moved = [
        stored.tensor.to(torch.float32),
        stored.tensor.t(),
        torch.cat([stored.tensor, stored.tensor]),
        torch.stack([stored.tensor, stored.tensor]),
        stored.tensor[1:3],
        stored.tensor[2],
        stored.tensor.chunk(3)[2].to(torch.float64),
        stored.tensor.float().chunk(3, dim=1)[1],
        stored.tensor.view(-1).clone(),
        nn.Parameter(stored.tensor).detach(),
    ]
    assert stored.reads == 0 and all(isinstance(each, Deferred) for each in moved)
    values = stored.values
    real = [
        values.to(torch.float32),
        values.t(),
        torch.cat([values, values]),
        torch.stack([values, values]),
        values[1:3],
        values[2],
        values.chunk(3)[2].to(torch.float64),
        values.float().chunk(3, dim=1)[1],
        values.view(-1).clone(),
        values,
    ]
    for one, other in zip(moved, real, strict=True):
        assert (one.shape, one.dtype, one.stride()) == (other.shape, other.dtype, other.stride())
        found = torch.empty_like(one).copy_(one)
        assert type(found) is torch.Tensor and torch.equal(found, other)


def test_other_operations_compute_with_what_they_read() -> None:
    stored = Stored(3, 3)
    result = stored.tensor @ torch.eye(3) + stored.tensor
    assert type(result) is torch.Tensor and torch.equal(result, 2 * stored.values) and stored.reads == 2
    assert type(torch.zeros_like(stored.tensor)) is torch.Tensor and stored.tensor.new_ones(2).sum() == 2
    assert stored.reads == 2


def test_a_part_of_what_is_cast_is_cast_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    stored, cast = Stored(8, 2, dtype=torch.bfloat16), []
    monkeypatch.setattr(stored, "read", lambda: Watched(stored.values, cast))
    half = deferred(stored.read, (8, 2), torch.bfloat16).float().chunk(2)[1]
    assert torch.equal(torch.empty_like(half).copy_(half), stored.values[4:].float())
    assert cast == [(4, 2)]


class Watched(torch.Tensor):
    """Notes the shape of everything that is cast."""

    cast: list[tuple[int, ...]]

    def __new__(cls, values: torch.Tensor, cast: list[tuple[int, ...]]) -> Watched:
        made = torch.Tensor._make_wrapper_subclass(cls, values.shape, strides=values.stride(), dtype=values.dtype)
        made.values, made.cast = values, cast
        return made

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        if func is torch.ops.aten._to_copy.default:
            args[0].cast.append(tuple(args[0].shape))
            return func(args[0].values, **(kwargs or {}))
        result = func(args[0].values, *args[1:])
        return [Watched(each, args[0].cast) for each in result] if isinstance(result, list) else result


def test_equality_is_that_of_the_values() -> None:
    stored, other = Stored(2000, 3, dtype=torch.bfloat16), Stored(2000, 3, dtype=torch.bfloat16)
    assert torch.equal(stored.tensor.float(), other.tensor.float())
    other.values = other.values.clone()
    other.values[1999, 2] = 0
    assert not torch.equal(stored.tensor.float(), other.tensor.float())
    assert not torch.equal(stored.tensor, stored.tensor[:5])


def test_a_model_is_filled_in_place() -> None:
    stored, model = Stored(4, 4), nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[0].weight = model[1].weight = nn.Parameter(stored.tensor, requires_grad=False)
    model[0].register_buffer("table", stored.tensor)
    model[0].weight.mark = 1
    optimizer = torch.optim.AdamW(model.parameters())
    before = [id(parameter) for parameter in model.parameters()]
    fill_buffers(model)
    assert is_deferred(model) and type(model[0].table) is torch.Tensor
    fill(model, dtype=torch.float64)
    assert not is_deferred(model) and type(model[0].weight) is nn.Parameter
    assert [id(parameter) for parameter in model.parameters()] == before
    assert [id(parameter) for parameter in optimizer.param_groups[0]["params"]] == before
    assert model[0].weight is model[1].weight and model[0].weight.mark == 1
    assert not model[0].weight.requires_grad and model[0].bias.requires_grad
    assert torch.equal(model[1].weight, stored.values.double())


def test_what_is_written_stays() -> None:
    stored = Stored(2, 3)
    weight = nn.Parameter(stored.tensor, requires_grad=False)
    copy, alias = deepcopy(weight), weight.data
    alias.copy_(torch.ones(2, 3))
    assert weight.mul_(2) is weight
    for one in (weight, alias, deepcopy(weight)):
        assert torch.equal(one + 0, torch.full((2, 3), 2.0))
    assert isinstance(copy, nn.Parameter) and isinstance(copy, Deferred)
    assert torch.equal(copy + 0, stored.values)
    with pytest.raises(AssertionError, match="the whole would not know"):
        weight[0].zero_()


def test_data_becomes_another_tensor() -> None:
    weight = nn.Parameter(Stored(2, 3).tensor)
    name = id(weight)
    weight.data = weight.data.to(torch.bfloat16)
    assert isinstance(weight, Deferred) and weight.dtype == torch.bfloat16 and weight.requires_grad
    weight.data = torch.zeros(5)
    assert type(weight) is nn.Parameter and weight.shape == (5,) and id(weight) == name
