"""A model without storage and the shape of a micro-batch go in; the memory of its forward and backward pass comes out.

torch's FakeTensorMode runs every operation of the architecture with shapes only, as a CPU would choose them (sdpa's
flash kernel, or plain products where there is dropout), so nothing is loaded and a model of 70 billion parameters takes
seconds. A dispatch mode beside it adds up the storages that are alive after each operation. torch's own MemTracker
does that too, module by module, but not what gradients there are at each moment, which is what strategies differ in."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from scaleup.data.collate import Batch
from scaleup.models.beside import base_of
from scaleup.models.classifier import pool_by_mask
from scaleup.plan.facts import Arithmetic, Footprint, MicroBatch
from scaleup.train.classify import class_objective
from scaleup.train.head_loss import fuse_head
from scaleup.train.losses import token_loss_sum
from scaleup.train.preference import preference_loss
from scaleup.train.step import Objective

aten = torch.ops.aten
LOW = torch.bfloat16


@dataclass(frozen=True)
class Timeline:
    """Holds the memory of one micro-batch, in bytes beyond parameters and buffers."""

    forward: int
    """Counts the bytes alive when the forward pass ends."""
    logits: int
    """Counts the bytes that the head and its loss had at most, beyond what there was before them."""
    moments: list[tuple[int, int]]
    """Holds bytes (the most alive without settled gradients, settled gradients), one pair for each gradient that
    settles."""


def trace(model: Any, micro_batch: MicroBatch, task: str, arithmetic: Arithmetic) -> Timeline:
    """Run one micro-batch, with a label at every position, for every text or for every pair, through a model on the
    meta device, which comes out with fake parameters of the traced type. Frozen parameters stay so.

    Raises whatever an architecture raises that needs values where there are only shapes."""
    fake, alive = FakeTensorMode(), Alive()
    whole = base_of(model)
    loss_sum, make = _objective(task, micro_batch)
    is_scored = task == "sequence_classification"
    with fake:
        _make_fake(model, LOW if arithmetic == "low" else torch.float32)
        model.train()
        if is_scored:
            pool_by_mask(whole)
        else:
            with _ValuesAssumed():
                fuse_head(model)
        with alive, _autocast(model) if arithmetic == "autocast" else nullcontext():
            alive.ignore(model)
            batch = make(model, *micro_batch.shape(task))
            with nullcontext() if is_scored else alive.head(model.get_output_embeddings()):
                loss = loss_sum(model, batch)
                forward = alive.bytes
                loss.backward()
    return Timeline(forward, alive.logits, alive.moments)


def at_depth(two: Timeline, three: Timeline, layers: int) -> Timeline:
    """Extrapolate from two and three equal layers to `layers` of them: every layer adds the same. Moments correspond
    counted from the start of the backward pass, where all layers' activations are alive, and from its end, where all
    their gradients are; the layers between lie on the line from one to the other."""

    def grown(low: int, high: int) -> int:
        return low + (layers - 2) * (high - low)

    def grown_pairs(low: list[tuple[int, int]], high: list[tuple[int, int]]) -> list[tuple[int, int]]:
        return [(grown(a, b), grown(c, d)) for (a, c), (b, d) in zip(low, high, strict=True)]

    reach = 2 * (len(three.moments) - len(two.moments))  # the moments of two layers: what is before or after is less
    first = grown_pairs(two.moments[:reach], three.moments[:reach])
    last = grown_pairs(two.moments[-reach:], three.moments[-reach:])
    return Timeline(grown(two.forward, three.forward), grown(two.logits, three.logits), first + last)


def footprint(arithmetic: Arithmetic, timeline: Timeline) -> Footprint:
    """Keep the moments that are the fullest for some share of the gradients between 0 and 1: their upper hull, from the
    most without gradients to the most gradients."""
    hull: list[tuple[int, int]] = []
    for most, gradients in sorted(timeline.moments, key=lambda moment: (moment[1], moment[0])):
        while hull and (most >= hull[-1][0] or (len(hull) > 1 and _is_below(hull[-2], hull[-1], (most, gradients)))):
            hull.pop()
        hull.append((most, gradients))
    return Footprint(arithmetic=arithmetic, forward=timeline.forward, logits=timeline.logits, moments=tuple(hull))


class Alive(TorchDispatchMode):
    """Counts the bytes of storages that were made inside and are still alive: settled gradients apart, parameters
    never."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0
        self.gradients = 0
        self.logits = 0
        self.moments: list[tuple[int, int]] = [(0, 0)]
        self._known: dict[int, weakref.ref[Any]] = {}
        self._settled: set[int] = set()
        self._at_head: int | None = None

    def ignore(self, model: torch.nn.Module) -> None:
        """Leave out parameters and buffers. A gradient counts as settled once it is its parameter's."""
        for tensor in [*model.parameters(), *model.buffers()]:
            self._known[id(tensor.untyped_storage())] = weakref.ref(tensor.untyped_storage())
            if tensor.requires_grad:
                tensor.register_post_accumulate_grad_hook(self._settle)

    @contextmanager
    def head(self, head: torch.nn.Module) -> Iterator[None]:
        """Record the most that `head` and the loss add, from the head's call until its input has its gradient."""

        def begin(module: Any, inputs: Any) -> None:
            self._at_head = self.bytes
            if inputs[0].requires_grad:
                inputs[0].register_hook(end)

        def end(gradient: Any) -> None:
            self._at_head = None

        hook = head.register_forward_pre_hook(begin)
        try:
            yield
        finally:
            hook.remove()
            self._at_head = None

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = _assumed(function, args)
        if result is None:
            result = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self._add(leaf.untyped_storage())
        self._note()
        if self._at_head is not None:
            self.logits = max(self.logits, self.bytes - self._at_head)
        return result

    def _add(self, storage: torch.UntypedStorage) -> None:
        key, size = id(storage), storage.nbytes()
        if key in self._known:
            return

        def forget(_: Any) -> None:
            del self._known[key]
            if key in self._settled:
                self._settled.remove(key)
                self.gradients -= size
            else:
                self.bytes -= size

        self._known[key] = weakref.ref(storage, forget)
        self.bytes += size

    def _settle(self, parameter: torch.Tensor) -> None:
        assert parameter.grad is not None
        storage = parameter.grad.untyped_storage()
        if id(storage) not in self._settled:
            self._settled.add(id(storage))
            self.bytes -= storage.nbytes()
            self.gradients += storage.nbytes()
            self._note()

    def _note(self) -> None:
        most, gradients = self.moments[-1]
        if gradients == self.gradients:
            self.moments[-1] = max(self.bytes, most), gradients
        else:
            self.moments.append((self.bytes, self.gradients))


def _is_below(left: tuple[int, int], middle: tuple[int, int], right: tuple[int, int]) -> bool:
    """Return whether `middle` is under the line from `left` to `right`; points are (height, place)."""
    return (middle[0] - left[0]) * (right[1] - left[1]) <= (right[0] - left[0]) * (middle[1] - left[1])


def _make_fake(model: Any, dtype: torch.dtype) -> None:
    """Replace parameters (in `dtype`) and buffers by fake ones on the CPU; shared ones stay shared."""
    made: dict[int, Any] = {}
    for module in model.modules():
        for name, old in module._parameters.items():
            if old is not None and id(old) not in made:
                new = torch.empty(old.shape, dtype=dtype if old.is_floating_point() else old.dtype, device="cpu")
                made[id(old)] = torch.nn.Parameter(new, requires_grad=old.requires_grad)
            module._parameters[name] = None if old is None else made[id(old)]
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype, device="cpu")
    for name, tokens in getattr(model, "prompt_tokens", {}).items():  # PEFT's, of a soft prompt
        model.prompt_tokens[name] = torch.empty(tokens.shape, dtype=tokens.dtype, device="cpu")


def _objective(task: str, micro_batch: MicroBatch) -> tuple[Objective, Callable[[Any, int, int], Batch]]:
    """Return the loss that trains a model of a task, and what makes its batch of (model, rows, length)."""
    if task != "sequence_classification":
        return token_loss_sum, partial(_tokens, packing=micro_batch.packing)
    return (preference_loss(), _pairs) if micro_batch.pairs else (class_objective("single_label"), _classes)


def _tokens(model: Any, rows: int, length: int, packing: bool) -> Batch:
    ids = torch.empty((rows, length), dtype=torch.long, device="cpu")
    labels = torch.empty_like(ids)
    inputs = {"input_ids": ids, "position_ids" if packing else "attention_mask": torch.empty_like(ids)}
    if model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = torch.empty_like(ids)
    return Batch(inputs, labels, rows * length, rows * length)


def _pairs(model: Any, rows: int, length: int) -> Batch:
    return Batch(_texts(2 * rows, length), torch.empty(rows, device="cpu"), rows, 2 * rows * length)


def _classes(model: Any, rows: int, length: int) -> Batch:
    return Batch(_texts(rows, length), torch.empty(rows, dtype=torch.long, device="cpu"), rows, rows * length)


def _texts(rows: int, length: int) -> dict[str, torch.Tensor]:
    ids = torch.empty((rows, length), dtype=torch.long, device="cpu")
    return {"input_ids": ids, "attention_mask": torch.empty_like(ids)}


@contextmanager
def _autocast(model: Any) -> Iterator[None]:
    """Wrap the model's forward in autocast, as Accelerate does: what the model returns is float32 again."""
    forward = model.forward

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        with torch.autocast("cpu", LOW):
            output = forward(*args, **kwargs)
        output.logits = output.logits.float()
        return output

    model.forward = wrapped
    try:
        yield
    finally:
        del model.forward


class _ValuesAssumed(TorchDispatchMode):
    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = _assumed(function, args)
        return function(*args, **(kwargs or {})) if result is None else result


def _assumed(function: Any, args: Any) -> Any:
    """Return the result of an operation whose shape depends on values, assuming that every position has a label and all
    rows are equally long. None for any other operation."""
    if function is aten.unique_consecutive.default:
        return tuple(args[0].new_empty((1,), dtype=torch.long) for _ in range(3))
    if function is aten.nonzero.default:
        return args[0].new_empty((args[0].numel(), args[0].ndim), dtype=torch.long)
    if function in (aten.index.Tensor, aten.index_put.default, aten._index_put_impl_.default) and (
        mask := _mask(args[1])
    ):
        if function is not aten.index.Tensor:
            return args[0]
        return args[0].new_empty((mask[0].numel(), *args[0].shape[mask[0].ndim :]))
    return None


def _mask(indices: Iterable[Any]) -> list[torch.Tensor]:
    """Return the boolean mask that is the only index, if there is one."""
    used = [index for index in indices if index is not None]
    return used if len(used) == 1 and used[0].dtype == torch.bool else []
