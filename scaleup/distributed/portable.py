"""This module reads a checkpoint of any strategy as whole parameters, one at a time, and puts them into whichever
engine is there.

Nothing is converted on the disk: the readers look into what the strategies wrote (mapped, not read whole, so a rank
holds one parameter at a time), and every rank takes its own share of each. Only what an optimizer moves is carried
over: frozen weights and buffers are those of the model that was loaded, and fp16's loss scale starts anew."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import safe_open

from scaleup.artifacts.checkpoints import Layout


@dataclass(frozen=True)
class Whole:
    """Holds a whole parameter and its optimizer state, in float32."""

    weight: torch.Tensor
    moments: dict[str, torch.Tensor]
    """Holds optimizer state of the weight's shape, by torch's names: exp_avg, exp_avg_sq, momentum_buffer."""
    step: float | None
    """Counts the optimizer steps taken, where the optimizer counts them."""


class Source(Protocol):
    """Reads what a strategy wrote."""

    def parameter(self, names: tuple[str, ...]) -> Whole:
        """Returns a parameter by its names: first its name in lists of parameters, then those of modules that share
        it."""


def source_of(folder: Path, layout: Layout) -> Source:
    """Returns the reader of what a strategy wrote."""
    if layout.strategy.startswith("zero"):
        return ZeroSource(folder / "pytorch_model", layout.num_processes)
    return FSDP2Source(folder) if layout.strategy == "fsdp2" else ReplicatedSource(folder, layout.parameters)


class ReplicatedSource:
    """Reads `model.safetensors`, and a torch optimizer's state in the order of its parameters."""

    def __init__(self, folder: Path, parameters: list[str]) -> None:
        self._weights = safe_open(folder / "model.safetensors", "pt")
        self._stored = set(self._weights.keys())
        self._number = {name: number for number, name in enumerate(parameters)}
        self._state = torch.load(folder / "optimizer.bin", map_location="cpu", weights_only=True, mmap=True)["state"]

    def parameter(self, names: tuple[str, ...]) -> Whole:
        stored = next(name for name in names if name in self._stored)  # safetensors keep one name of a shared weight
        return _whole(self._weights.get_tensor(stored), self._state.get(self._number[names[0]], {}))


class FSDP2Source:
    """Reads torch's distributed checkpoints, whose own reader joins shards."""

    def __init__(self, folder: Path) -> None:
        self._weights = _DistributedReader(folder / "pytorch_model_fsdp_0")
        self._optimizer = _DistributedReader(folder / "optimizer_0")

    def parameter(self, names: tuple[str, ...]) -> Whole:
        prefix = f"optimizer.state.{names[0]}."
        state = self._optimizer.read([key for key in self._optimizer.tensors if key.startswith(prefix)])
        [weight] = self._weights.read([f"model.{names[0]}"]).values()
        return _whole(weight, {key.removeprefix(prefix): value for key, value in state.items()})


class _DistributedReader:
    def __init__(self, folder: Path) -> None:
        from torch.distributed.checkpoint import FileSystemReader
        from torch.distributed.checkpoint.metadata import TensorStorageMetadata

        self._files = FileSystemReader(folder)
        metadata = self._files.read_metadata()
        self._files.read_metadata = lambda *_, **__: metadata  # type: ignore[method-assign]  # else once a parameter
        entries = metadata.state_dict_metadata.items()
        self.tensors = {key: kind for key, kind in entries if isinstance(kind, TensorStorageMetadata)}

    def read(self, keys: list[str]) -> dict[str, torch.Tensor]:
        from torch.distributed.checkpoint import load

        tensors = {key: torch.empty(self.tensors[key].size, dtype=self.tensors[key].properties.dtype) for key in keys}
        if tensors:
            load(tensors, storage_reader=self._files, no_dist=True)
        return tensors


@dataclass(frozen=True)
class _Fragment:
    """Holds the position of a part of a parameter in a rank's flat tensors."""

    rank: int
    group: int
    start: int
    length: int


class ZeroSource:
    """Reads what DeepSpeed's ranks wrote: flat tensors, in which each parameter has a fragment on some of the ranks."""

    def __init__(self, folder: Path, world: int) -> None:
        states = [_unpickled(folder, f"*zero_pp_rank_{rank}_mp_rank_00_optim_states.pt") for rank in range(world)]
        ranks = [state["optimizer_state_dict"] for state in states]
        groups = _unpickled(folder, "*mp_rank_00_model_states.pt")["param_shapes"]
        if "fp32_flat_groups" in ranks[0]:
            weights, optimizer = "fp32_flat_groups", "optimizer_state_dict"
            slices = _stage3_slices(groups, world)
        else:
            weights, optimizer = "single_partition_of_fp32_groups", "base_optimizer_state"
            slices = _slices([rank["param_slice_mappings"] for rank in ranks])
        self._weights = [rank[weights] for rank in ranks]
        self._states = [rank[optimizer]["state"] for rank in ranks]
        self._shapes = {name: shape for group in groups for name, shape in group.items()}
        self._fragments: dict[str, list[_Fragment]] = {name: [] for name in self._shapes}
        for name, fragment in slices:
            self._fragments[name].append(fragment)

    def parameter(self, names: tuple[str, ...]) -> Whole:
        name = names[0]
        fragments = self._fragments[name]
        state = dict(self._states[fragments[0].rank].get(fragments[0].group, {}))
        for key, value in state.items():
            if _is_moment(value):
                state[key] = self._joined(name, [self._states[part.rank][part.group][key] for part in fragments])
        return _whole(self._joined(name, [self._weights[part.rank][part.group] for part in fragments]), state)

    def _joined(self, name: str, flats: list[torch.Tensor]) -> torch.Tensor:
        fragments = zip(flats, self._fragments[name], strict=True)
        return torch.cat([flat.narrow(0, part.start, part.length) for flat, part in fragments]).view(self._shapes[name])


def _slices(mappings: list[list[dict[str, Any]]]) -> Iterator[tuple[str, _Fragment]]:
    """Yields the fragments of each parameter under ZeRO-1 and 2, which cut a group's parameters, laid end to end, into
    one piece a rank; each rank wrote what it has."""
    for rank, groups in enumerate(mappings):
        for group, mapping in enumerate(groups):
            for name, address in mapping.items():
                yield name, _Fragment(rank, group, address.start, address.numel)


def _stage3_slices(groups: list[dict[str, torch.Size]], world: int) -> Iterator[tuple[str, _Fragment]]:
    """Yields the fragments of each parameter under ZeRO-3, which cuts every parameter into equal shares, the last one
    padded. `groups` has the shapes in each flat tensor: of a parameter group there are several where a rank's shares
    have more than `sub_group_size` elements, a billion."""
    for group, shapes in enumerate(groups):
        start = 0
        for name, shape in shapes.items():
            share = math.ceil(shape.numel() / world)
            for rank in range(world):
                yield name, _Fragment(rank, group, start, min(share, max(0, shape.numel() - rank * share)))
            start += share


def _unpickled(folder: Path, pattern: str) -> dict[str, Any]:
    """Unpickles a file of DeepSpeed's: only plain data and the few classes that such files are known to hold."""
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    with torch.serialization.safe_globals([DynamicLossScaler, LossScaler, ZeroStageEnum, fragment_address]):
        return torch.load(min(folder.glob(pattern)), map_location="cpu", weights_only=True, mmap=True)


def _whole(weight: torch.Tensor, state: dict[str, Any]) -> Whole:
    moments = {key: value for key, value in state.items() if _is_moment(value)}
    return Whole(weight, moments, float(state["step"]) if "step" in state else None)


def _is_moment(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.ndim > 0


def names_of(model: torch.nn.Module) -> dict[torch.nn.Parameter, tuple[str, ...]]:
    """Returns all names of each trained parameter; the first is its name in lists of parameters."""
    names: dict[torch.nn.Parameter, tuple[str, ...]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if parameter.requires_grad:
            names[parameter] = (*names.get(parameter, ()), name)
    return names


@torch.no_grad()
def put_into_torch(source: Source, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Copies a checkpoint into a model, replicated or sharded by FSDP2, and its optimizer."""
    for parameter, names in names_of(model).items():
        whole = source.parameter(names)
        parameter.copy_(_like(parameter, whole.weight))
        state = {key: _like(parameter, moment) for key, moment in whole.moments.items()}
        if state:  # where there is none yet, the optimizer makes it
            step = {} if whole.step is None else {"step": torch.tensor(whole.step, device=parameter.device)}
            optimizer.state[parameter] = state | step


def _like(parameter: torch.Tensor, whole: torch.Tensor) -> torch.Tensor:
    """Returns a copy of a whole tensor on the parameter's device, and sharded like it."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    placed = whole.to(parameter.device, copy=True)
    if not isinstance(parameter, DTensor):
        return placed
    return distribute_tensor(placed, parameter.device_mesh, parameter.placements, src_data_rank=None)


@torch.no_grad()
def put_into_zero(source: Source, engine: Any, optimizer: torch.optim.Optimizer) -> None:
    """Copies a checkpoint into a DeepSpeed engine: the float32 weights that its optimizer steps, and their moments."""
    is_stage3 = engine.zero_optimization_stage() == 3
    if is_stage3:
        engine.optimizer.checkpoint_event_prologue()
    slices_of = _stage3_flat_slices if is_stage3 else _flat_slices
    for parameter, names in names_of(engine.module).items():
        whole = source.parameter(names)
        for flat, start, part in slices_of(engine.optimizer, parameter, whole.weight):
            flat.narrow(0, start, part.numel()).copy_(part)
        for key, moment in whole.moments.items():
            for flat, start, part in slices_of(engine.optimizer, parameter, moment):
                state = optimizer.state[flat]
                if key not in state:  # DeepSpeed makes it at the first step
                    state[key] = torch.zeros_like(flat)
                state[key].narrow(0, start, part.numel()).copy_(part)
                if whole.step is not None:
                    state["step"] = _step_like(optimizer, whole.step, flat.device)
    if is_stage3:  # loading what it would save hands the weights on to the parameters that compute
        engine.optimizer.load_state_dict([engine.optimizer.state_dict()] * torch.distributed.get_world_size())
        engine.optimizer.checkpoint_event_epilogue()
    else:
        engine.optimizer.update_lp_params()


FlatSlices = Iterator[tuple[torch.Tensor, int, torch.Tensor]]
"""Yields a flat tensor of this rank, a position in it, and the values that belong there from that position on. It is
empty if the rank has no part of the parameter."""


def _flat_slices(zero: Any, parameter: Any, whole: torch.Tensor) -> FlatSlices:
    if (mapping := parameter._hp_mapping) is not None:
        flat = zero.optimizer.param_groups[mapping.param_group_index]["params"][0]
        address = mapping.lp_fragment_address
        yield flat, mapping.hp_fragment_address.start, whole.flatten().narrow(0, address.start, address.numel)


def _stage3_flat_slices(zero: Any, parameter: Any, whole: torch.Tensor) -> FlatSlices:
    group, start, length = zero.grad_position[zero.get_param_id(parameter)]
    begin = length * torch.distributed.get_rank()
    yield zero.fp32_partitioned_groups_flat[group], start, whole.flatten()[begin : begin + length]


def _step_like(optimizer: torch.optim.Optimizer, step: float, device: torch.device) -> Any:
    """Returns a step as the optimizer counts: torch in a tensor beside the weights, DeepSpeed's optimizer on the CPU in
    an int."""
    return torch.tensor(step, device=device) if type(optimizer).__module__.startswith("torch.") else int(step)
