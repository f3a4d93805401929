"""This module holds the engines, one for each kind of strategy: how a process joins its process group, what wraps the
model, and who clips gradients and steps.

`replicated` (single, ddp) and `fsdp2` step a torch optimizer; under ZeRO DeepSpeed's engine does it. The loop above
sees one interface, and every engine takes a loss scaled the same way: all of them average gradients over ranks."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from typing import Any, Protocol

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs, InitProcessGroupKwargs
from accelerate.utils import DeepSpeedPlugin, FullyShardedDataParallelPlugin
from torch.nn.parallel import DistributedDataParallel

from scaleup.distributed.deepspeed_ops import OPS, ensure_built, uncompiled
from scaleup.distributed.deferred import fill, is_deferred
from scaleup.distributed.fsdp2 import (
    embeddings_left_to_the_root,
    let_accelerate_shard_on_cpus,
    low_precision,
    without_frozen,
)
from scaleup.distributed.gathering import shard_again_under_fsdp2, whole_under_fsdp2, whole_under_zero3
from scaleup.distributed.partition import partition
from scaleup.distributed.portable import Source, put_into_torch, put_into_zero
from scaleup.distributed.stepping import parts_of
from scaleup.plan.types import GroupPlan

LOW = {"bf16": torch.bfloat16, "fp16": torch.float16}
"""Maps DeepSpeed's names of low precisions to torch's."""


class NonFiniteError(ArithmeticError):
    """Tells that the loss or the gradient is NaN or infinite."""


class Engine(Protocol):
    """Is the interface of a strategy to the training loop."""

    def accelerator(self, group: GroupPlan, timeout: timedelta, **common: Any) -> Accelerator:
        """Joins the group's process group."""

    def prepare(self, accelerator: Accelerator, *parts: Any) -> Any:
        """Wraps a model (and optimizer) for this strategy."""

    def wrapper(self, model: torch.nn.Module) -> tuple[str, int | None]:
        """Returns the name of the class that wraps a prepared model, and the ZeRO stage."""

    def micro_batch(self, accelerator: Accelerator, model: Any, last: bool) -> AbstractContextManager[Any]:
        """Returns the context of a micro-batch's forward and backward: where gradients are whole on each rank, they are
        reduced with the last micro-batch of a step only."""

    def backward(self, accelerator: Accelerator, model: Any, loss: torch.Tensor) -> None:
        """Adds the gradients of a micro-batch's loss to those of the step."""

    def update(self, accelerator: Accelerator, model: Any, optimizer: Any, max_norm: float) -> tuple[float, bool]:
        """Clips gradients to `max_norm` (infinite: no clipping), steps, and clears gradients. Returns the gradient norm
        and whether fp16 skipped the step. Raises NonFiniteError."""

    def stepped(self, model: Any, optimizer: Any) -> list[torch.Tensor]:
        """Returns the tensors that the optimizer steps on this rank: parameters or shards of them, or what several are
        laid flat in."""

    def unclipped(self, model: Any) -> AbstractContextManager[None]:
        """Returns the context in which `update` clips to the norm that it is given alone, and to no other."""

    def gathered(self, parameter: torch.nn.Parameter) -> torch.Tensor:
        """Returns the whole of a trained parameter, in float32. Every rank must call it where the engine divides
        parameters, or float32 copies of them, among ranks."""

    @property
    def divides(self) -> bool:
        """Returns whether it does."""

    def shape(self, parameter: torch.nn.Parameter) -> torch.Size:
        """Returns the shape of a whole parameter."""

    def whole(self, model: Any, part: torch.nn.Module) -> AbstractContextManager[None]:
        """Returns the context in which the weights of a part of a prepared model are whole on every rank, gathered
        once. Every rank must enter it, and make a forward pass of the part in it."""

    def shard_again(self, model: Any) -> None:
        """Shards what a forward pass without a backward one left whole."""

    def save_options(self) -> dict[str, Any]:
        """Returns the arguments of Accelerate's save_state that leave frozen weights out."""

    def load_options(self) -> dict[str, Any]:
        """Returns the arguments of Accelerate's load_state that allow them to be missing."""

    def frozen_left_out(self) -> AbstractContextManager[Any]:
        """Returns the context in which Accelerate saves and loads a partly frozen model without its frozen weights."""

    def put(self, model: Any, optimizer: Any, source: Source) -> None:
        """Copies a checkpoint's weights and optimizer state into a prepared model and optimizer. Every rank must call
        it."""


class ReplicatedEngine:
    """Keeps the whole model on every rank: `single` and `ddp`."""

    def accelerator(self, group: GroupPlan, timeout: timedelta, **common: Any) -> Accelerator:
        ddp = DistributedDataParallelKwargs(gradient_as_bucket_view=True)
        handlers = [InitProcessGroupKwargs(timeout=timeout), ddp]
        return Accelerator(cpu=group.device == "cpu", kwargs_handlers=handlers, **common)

    def prepare(self, accelerator: Accelerator, *parts: Any) -> Any:
        fill(parts[0], accelerator.device)
        return accelerator.prepare(*parts)

    def wrapper(self, model: torch.nn.Module) -> tuple[str, int | None]:
        return (type(model).__name__ if isinstance(model, DistributedDataParallel) else "none"), None

    def micro_batch(self, accelerator: Accelerator, model: Any, last: bool) -> AbstractContextManager[Any]:
        return nullcontext() if last else accelerator.no_sync(model)

    def backward(self, accelerator: Accelerator, model: Any, loss: torch.Tensor) -> None:
        accelerator.backward(loss)

    def update(self, accelerator: Accelerator, model: Any, optimizer: Any, max_norm: float) -> tuple[float, bool]:
        norm = float(accelerator.clip_grad_norm_(model.parameters(), max_norm))
        scaled = accelerator.scaler is not None  # then an infinite norm is the scaler's to handle
        if not math.isfinite(norm) and not scaled:
            raise NonFiniteError(f"the gradient norm is {norm}")
        optimizer.step()
        optimizer.zero_grad()
        return norm, scaled and accelerator.optimizer_step_was_skipped

    def stepped(self, model: Any, optimizer: Any) -> list[torch.Tensor]:
        return parts_of(base_optimizer(optimizer))

    def unclipped(self, model: Any) -> AbstractContextManager[None]:
        return nullcontext()

    def gathered(self, parameter: torch.nn.Parameter) -> torch.Tensor:
        return parameter.detach().float()

    def shape(self, parameter: torch.nn.Parameter) -> torch.Size:
        return parameter.shape

    @property
    def divides(self) -> bool:
        return False

    def whole(self, model: Any, part: torch.nn.Module) -> AbstractContextManager[None]:
        return nullcontext()

    def shard_again(self, model: Any) -> None:
        return

    def save_options(self) -> dict[str, Any]:
        return {}

    def load_options(self) -> dict[str, Any]:
        return {"strict": False}

    def frozen_left_out(self) -> AbstractContextManager[Any]:
        return nullcontext()

    def put(self, model: Any, optimizer: Any, source: Source) -> None:
        whole = model.module if isinstance(model, DistributedDataParallel) else model
        put_into_torch(source, whole, base_optimizer(optimizer))


class FSDP2Engine(ReplicatedEngine):
    """Shards parameters, gradients and optimizer state over ranks by torch's `fully_shard`."""

    def accelerator(self, group: GroupPlan, timeout: timedelta, **common: Any) -> Accelerator:
        backend = InitProcessGroupKwargs(backend=group.backend, timeout=timeout)
        if group.device == "cpu":
            let_accelerate_shard_on_cpus()
        plugin = FullyShardedDataParallelPlugin(
            fsdp_version=2,
            auto_wrap_policy="transformer_based_wrap",
            cpu_ram_efficient_loading=False,
            state_dict_type="SHARDED_STATE_DICT",
            mixed_precision_policy=low_precision(group.mixed_precision),
        )
        return Accelerator(fsdp_plugin=plugin, kwargs_handlers=[backend], **common)

    def prepare(self, accelerator: Accelerator, *parts: Any) -> Any:
        """Prepares a model, one that is not trained with an optimizer that does nothing: Accelerate demands one.
        `fully_shard` copies a rank's part of one parameter after another, which reads what is deferred."""
        with embeddings_left_to_the_root(parts[0]):
            if len(parts) > 1:
                return accelerator.prepare(*parts)
            return accelerator.prepare(*parts, torch.optim.SGD(parts[0].parameters(), lr=0.0))[0]

    def micro_batch(self, accelerator: Accelerator, model: Any, last: bool) -> AbstractContextManager[Any]:
        """Lets gradients be reduced with each micro-batch: put off to the last, each rank would hold all of them."""
        return nullcontext()

    def frozen_left_out(self) -> AbstractContextManager[Any]:
        return without_frozen()

    def gathered(self, parameter: Any) -> torch.Tensor:
        whole: torch.Tensor = parameter.full_tensor()
        return whole.detach().float()

    @property
    def divides(self) -> bool:
        return True

    def wrapper(self, model: torch.nn.Module) -> tuple[str, int | None]:
        from torch.distributed.fsdp import FSDPModule

        return ("FSDPModule" if isinstance(model, FSDPModule) else type(model).__name__), None

    def whole(self, model: Any, part: torch.nn.Module) -> AbstractContextManager[None]:
        return whole_under_fsdp2(part)

    def shard_again(self, model: Any) -> None:
        shard_again_under_fsdp2(model)


class DeepSpeedEngine:
    """Runs ZeRO stages 1, 2 and 3 (Rajbhandari et al. 2020): optimizer state, gradients, parameters sharded in turn."""

    def accelerator(self, group: GroupPlan, timeout: timedelta, **common: Any) -> Accelerator:
        from transformers.integrations.deepspeed import unset_hf_deepspeed_config

        assert group.deepspeed is not None, "the plan holds DeepSpeed's settings"
        if group.device == "cpu":
            offloads = group.deepspeed["zero_optimization"]["offload_optimizer"]["device"] == "cpu"
            ensure_built(OPS if offloads else OPS[:1], print)
        os.environ.pop("ACCELERATE_CONFIG_DS_FIELDS", None)  # the launch file's settings: the plan's come instead
        plugin = DeepSpeedPlugin(hf_ds_config=dict(group.deepspeed), zero3_init_flag=False)
        handlers = [InitProcessGroupKwargs(backend=group.backend, timeout=timeout)]
        accelerator = Accelerator(deepspeed_plugin=plugin, kwargs_handlers=handlers, **common)
        # Accelerate takes a clipping of 0 for unset and clips at 1; set here, it stays as it is
        settings = accelerator.state.deepspeed_plugin.deepspeed_config
        settings["gradient_clipping"] = group.deepspeed["gradient_clipping"]
        # Accelerate told Transformers of ZeRO-3, which then loads models shard by shard and ties T5's head on the way:
        # models are loaded as everywhere else, deferred, and each weight is read and sharded when they are prepared
        unset_hf_deepspeed_config()
        return accelerator

    def prepare(self, accelerator: Accelerator, *parts: Any) -> Any:
        settings = accelerator.state.deepspeed_plugin.deepspeed_config
        dtype = next((kind for name, kind in LOW.items() if settings.get(name, {}).get("enabled")), torch.float32)
        with uncompiled():  # to ask whether the optimizer is its Muon, DeepSpeed imports it
            if settings["zero_optimization"]["stage"] == 3 and is_deferred(parts[0]):
                partition(parts[0], settings, dtype)
                parts[0].to(accelerator.device)  # buffers: DeepSpeed takes a partitioned model to be in its place
            else:
                fill(parts[0], accelerator.device, dtype)
            return accelerator.prepare(*parts)

    def wrapper(self, model: torch.nn.Module) -> tuple[str, int | None]:
        stage = getattr(model, "zero_optimization_stage", None)
        return type(model).__name__, stage() if stage else None

    def micro_batch(self, accelerator: Accelerator, model: Any, last: bool) -> AbstractContextManager[Any]:
        model.set_gradient_accumulation_boundary(is_boundary=last)
        return nullcontext()

    def backward(self, accelerator: Accelerator, model: Any, loss: torch.Tensor) -> None:
        model.backward(loss)

    def update(self, accelerator: Accelerator, model: Any, optimizer: Any, max_norm: float) -> tuple[float, bool]:
        model.step()  # clips by the plan's settings, steps and clears
        norm = float(model.get_global_grad_norm())
        skipped = bool(getattr(model.optimizer, "overflow", False))
        if not math.isfinite(norm) and not skipped:
            raise NonFiniteError(f"the gradient norm is {norm}")
        return norm, skipped

    def stepped(self, model: Any, optimizer: Any) -> list[torch.Tensor]:
        """Returns float32 tensors in which this rank's partitions are laid out. The optimizer names those of ZeRO-3
        only while it steps them."""
        if model.zero_optimization_partition_weights():
            return list(model.optimizer.fp32_partitioned_groups_flat)
        return parts_of(base_optimizer(optimizer))

    @contextmanager
    def unclipped(self, model: Any) -> Iterator[None]:
        usual, model.optimizer.clip_grad = model.optimizer.clip_grad, 0.0
        try:
            yield
        finally:
            model.optimizer.clip_grad = usual

    def gathered(self, parameter: torch.nn.Parameter) -> torch.Tensor:
        """Returns the float32 master weights."""
        from deepspeed.utils import safe_get_full_fp32_param

        whole: torch.Tensor = safe_get_full_fp32_param(parameter)
        return whole.detach().float()

    def shape(self, parameter: Any) -> torch.Size:
        shape: torch.Size = getattr(parameter, "ds_shape", parameter.shape)
        return shape

    @property
    def divides(self) -> bool:
        return True

    def whole(self, model: Any, part: torch.nn.Module) -> AbstractContextManager[None]:
        return whole_under_zero3(model, part) if model.zero_optimization_partition_weights() else nullcontext()

    def shard_again(self, model: Any) -> None:
        return

    def save_options(self) -> dict[str, Any]:
        return {"exclude_frozen_parameters": True}

    def load_options(self) -> dict[str, Any]:
        return {"load_module_strict": False}

    def frozen_left_out(self) -> AbstractContextManager[Any]:
        return nullcontext()

    def put(self, model: Any, optimizer: Any, source: Source) -> None:
        put_into_zero(source, model, base_optimizer(optimizer))


def engine_for(strategy: str) -> Engine:
    """Returns the engine of a strategy: single, ddp, zero1 to zero3, or fsdp2."""
    if strategy.startswith("zero"):
        return DeepSpeedEngine()
    return FSDP2Engine() if strategy == "fsdp2" else ReplicatedEngine()


def base_optimizer(optimizer: Any) -> torch.optim.Optimizer:
    """Returns the torch optimizer inside Accelerate's and DeepSpeed's, whose learning rate counts."""
    while hasattr(optimizer, "optimizer"):
        optimizer = optimizer.optimizer
    return optimizer
