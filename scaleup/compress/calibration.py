"""This module runs a model over calibration rows and returns statistics of its activations: distances between hidden
states, and norms of matrices' inputs.

Each rank takes its share of the batches, and sums are added up over all ranks; padding is left out. So what is pruned
by these statistics does not depend on the number of ranks."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from scaleup.config.data import DataConfig
from scaleup.data.collate import Batch
from scaleup.data.sources import read_source
from scaleup.data.tokenization import IGNORE, RowEncoder, TokenRow
from scaleup.distributed.runtime import Runtime
from scaleup.errors import ScaleupError
from scaleup.models.architecture import Architecture, Stack, architecture_of
from scaleup.records.examples import row_problem


@dataclass(frozen=True)
class Distances:
    """Holds distances between the hidden states x_l before layer l and x_(l+n) before layer l + n, in the mean over
    positions: (L - n + 1) each, for l from 0 to L - n. x_L is the output of the last layer, before the final norm."""

    influence: torch.Tensor
    """Is 1 - cos(x_l, x_(l+n)): block influence where n is 1 (Men et al. 2024)."""
    angular: torch.Tensor
    """Is arccos(cos(x_l, x_(l+n))) / pi (Gromov et al. 2024)."""


@dataclass(frozen=True)
class Statistics:
    """Holds what `calibrate` measures, summed over all ranks: tensors on the CPU in float64."""

    distances: dict[str, Distances]
    """Holds the distances by the name of the stack, for the stacks in `spans`."""
    input_norms: dict[str, torch.Tensor]
    """Holds ||X||_2 of each input feature over all positions (in), by the name of the matrix in the model."""


def calibration_rows(data: DataConfig, encoder: RowEncoder, count: int) -> list[TokenRow]:
    """Returns the first `count` rows of data.train that fit. Raises ScaleupError for a row that cannot be used, or too
    few."""
    rows = list(islice(_encoded(data, encoder), count))
    if len(rows) < count:
        what = f"{count} are asked for, and data.train has {len(rows)} that fit data.max_length {data.max_length}"
        raise ScaleupError.of("prune.calibration_rows", what, "ask for fewer, or name more rows")
    return rows


def _encoded(data: DataConfig, encoder: RowEncoder) -> Iterator[TokenRow]:
    for source in data.train or []:
        make = encoder.maker(source)
        for index, (where, values) in enumerate(read_source(data, source, "train", data.streaming)):
            try:
                encoded = encoder(make(values, index))
            except ScaleupError as error:
                raise ScaleupError(row_problem(where, error)) from None
            yield from (row for row in encoded if row is not None)


@torch.no_grad()
def calibrate(
    runtime: Runtime,
    model: Any,
    batches: Sequence[Batch],
    spans: Mapping[str, int],
    matrices: Sequence[str],
) -> Statistics:
    """Returns distances over `spans[stack]` layers of each stack in `spans`, and input norms of the matrices with these
    names, over all batches.

    Each rank runs every world-th batch. Every rank must call it and gets the same."""
    architecture = architecture_of(model)
    masks = Masks(architecture)
    layers = [_LayerSums(stack, spans[stack.name], masks) for stack in architecture.stacks if stack.name in spans]
    inputs = [_InputSums(name, model.get_submodule(name), masks) for name in matrices]
    accumulators: list[_LayerSums | _InputSums] = [*layers, *inputs]
    model.eval()
    with ExitStack() as hooks:
        for accumulator in accumulators:
            hooks.enter_context(accumulator.hooked())
        for batch in batches[runtime.rank :: runtime.world]:
            batch = batch.to(runtime.device)
            masks.read(batch)
            model(**batch.inputs, use_cache=False)
    parts = [tensor for accumulator in accumulators for tensor in accumulator.sums()]
    total = iter(runtime.sum_tensor(torch.cat(parts)).split([len(part) for part in parts]) if parts else ())
    distances = {layer.stack.name: layer.distances(*islice(total, 3)) for layer in layers}
    return Statistics(distances, {matrix.name: next(total).sqrt() for matrix in inputs})


def matrices_of(model: Any) -> dict[str, nn.Module]:
    """Returns the Linear and Conv1D modules of all layers by their names in the model: never embeddings or heads."""
    inside = {id(module) for layer in architecture_of(model).layers for module in layer.module.modules()}
    return {
        name: module
        for name, module in model.named_modules()
        if id(module) in inside and isinstance(module, nn.Linear | Conv1D)
    }


class Masks:
    """Tells which positions of the current batch are real: (B, S) booleans, of the encoder and of the decoder."""

    def __init__(self, architecture: Architecture) -> None:
        self._stacks = {module: stack.name for stack in architecture.stacks for module in stack.blocks.modules()}
        # keys and values over an encoder's states are made of its positions, not the decoder's
        cross = [
            module
            for attention in architecture.attentions
            if attention.is_cross
            for module in (attention.key, attention.value)
        ]
        self._stacks |= dict.fromkeys(cross, "encoder")
        self._masks: dict[str, torch.Tensor] = {}

    def read(self, batch: Batch) -> None:
        """Takes the masks of a batch; the modules that `real` is called with run on this batch from now on."""
        source = batch.inputs["attention_mask"].bool()
        is_double = "decoder_input_ids" in batch.inputs
        self._masks = {"encoder": source, "decoder": batch.labels != IGNORE if is_double else source}

    def real(self, module: nn.Module, states: torch.Tensor) -> torch.Tensor:
        """Returns the states (N, H) at the N real positions of a module's input or output (B, S, H), in float64."""
        return states[self._masks[self._stacks[module]]].double()


class _InputSums:
    """Adds up the squares of a matrix's input features."""

    def __init__(self, name: str, module: nn.Module, masks: Masks) -> None:
        self.name, self._module, self._masks = name, module, masks
        width: Any = module.nx if isinstance(module, Conv1D) else module.in_features
        self._sums = torch.zeros(width, dtype=torch.float64)

    @contextmanager
    def hooked(self) -> Iterator[None]:
        handle = self._module.register_forward_pre_hook(self._add)
        try:
            yield
        finally:
            handle.remove()

    def _add(self, module: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        self._sums += self._masks.real(module, args[0]).square().sum(0).to(self._sums.device)

    def sums(self) -> list[torch.Tensor]:
        return [self._sums]


class _LayerSums:
    """Adds up cosines and angles between hidden states that are `span` layers apart. It holds no more than span + 1
    states."""

    def __init__(self, stack: Stack, span: int, masks: Masks) -> None:
        self.stack, self._span, self._masks = stack, span, masks
        self._cosine, self._angle = torch.zeros(2, len(stack.blocks) - span + 1, dtype=torch.float64)
        self._count = torch.zeros(1, dtype=torch.float64)
        self._window: deque[torch.Tensor] = deque(maxlen=span + 1)

    @contextmanager
    def hooked(self) -> Iterator[None]:
        blocks = list(self.stack.blocks)
        handles = [
            block.register_forward_pre_hook(partial(self._before, place), with_kwargs=True)
            for place, block in enumerate(blocks)
        ]
        handles.append(blocks[-1].register_forward_hook(self._after))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _before(self, place: int, block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if place == 0:
            self._window.clear()
        self._add(block, place, args[0] if args else kwargs["hidden_states"])

    def _after(self, block: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        states = output[0] if isinstance(output, tuple) else output
        self._add(block, len(self.stack.blocks), states)
        self._count += len(self._window[-1])

    def _add(self, block: nn.Module, place: int, states: torch.Tensor) -> None:
        self._window.append(self._masks.real(block, states))
        if place >= self._span:
            cosine = torch.cosine_similarity(self._window[0], self._window[-1], dim=-1).clamp(-1, 1)
            self._cosine[place - self._span] += float(cosine.sum())
            self._angle[place - self._span] += float(cosine.arccos().sum())

    def sums(self) -> list[torch.Tensor]:
        return [self._cosine, self._angle, self._count]

    def distances(self, cosine: torch.Tensor, angle: torch.Tensor, count: torch.Tensor) -> Distances:
        return Distances(1 - cosine / count, angle / count / torch.pi)


Collate = Callable[[Sequence[TokenRow]], Batch]


def in_batches(rows: Sequence[TokenRow], collate: Collate, size: int) -> list[Batch]:
    """Returns the rows in batches of `size`, the same whatever the number of ranks."""
    return [collate(rows[first : first + size]) for first in range(0, len(rows), size)]
