"""This module takes a planned group and returns a Runtime: this process in its process group. Nothing else builds an
Accelerator.

Most ways to start processes on a CPU fail silently: every process believes it is alone and trains a model of its own.
So `start` compares what came up with the plan, and `prepare` does the same with what wraps the model."""

from __future__ import annotations

import math
import os
import random
import socket
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import ProjectConfiguration

from scaleup.distributed.allocator import large_blocks_given_back
from scaleup.distributed.deferred import deferred
from scaleup.distributed.engines import base_optimizer, engine_for
from scaleup.distributed.heartbeat import Heartbeat
from scaleup.distributed.portable import Source
from scaleup.distributed.progress import Progress
from scaleup.distributed.signals import StopFlag
from scaleup.distributed.stepping import gradients_taken
from scaleup.errors import ScaleupError
from scaleup.plan.types import GroupPlan


class Runtime:
    """Holds a process of a group of the plan: rank, device, collectives, and the model under the planned strategy."""

    def __init__(self, accelerator: Accelerator, group: GroupPlan, progress: Progress, stop: StopFlag) -> None:
        self.accelerator = accelerator
        self.group = group
        self.progress = progress
        self.stop = stop
        self._engine = engine_for(group.strategy)

    @classmethod
    def start(
        cls,
        group: GroupPlan,
        timeout_seconds: int,
        run_folder: Path,
        report_to: Sequence[str] = (),
        progress_file: Path | None = None,
        stop: StopFlag | None = None,
        heartbeat: Heartbeat | None = None,
    ) -> Runtime:
        """Joins the process group of a planned group. Raises ScaleupError if it is not as planned."""
        _check_environment(group)
        torch.set_num_threads(group.threads_per_process)
        accelerator = engine_for(group.strategy).accelerator(
            group,
            timedelta(seconds=timeout_seconds),
            mixed_precision=group.mixed_precision,
            log_with=["tensorboard", *report_to],
            project_config=ProjectConfiguration(str(run_folder), logging_dir=str(run_folder / "tensorboard")),
        )
        accelerator.register_save_state_pre_hook(_only_trained)
        progress = Progress(progress_file, accelerator.is_main_process, heartbeat)
        runtime = cls(accelerator, group, progress, stop or StopFlag())
        runtime._check_world()
        return runtime

    def around(self, accelerator: Accelerator) -> Runtime:
        """Returns a Runtime of the same process group with another Accelerator, for models that a library's own loop
        prepared."""
        accelerator.register_save_state_pre_hook(_only_trained)
        return Runtime(accelerator, self.group, self.progress, self.stop)

    @property
    def rank(self) -> int:
        return self.accelerator.process_index

    @property
    def world(self) -> int:
        return self.accelerator.num_processes

    @property
    def is_main(self) -> bool:
        return self.accelerator.is_main_process

    @property
    def device(self) -> torch.device:
        return self.accelerator.device

    def sum(self, *values: float | torch.Tensor) -> list[float]:
        """Returns each value, a number or a scalar on the device, summed over all ranks, in float64: the host reads the
        device once. Every rank must call it."""
        self.progress.heartbeat.enter_collective()
        on_device = [(place, value) for place, value in enumerate(values) if isinstance(value, torch.Tensor)]
        if self.world == 1 and not on_device:
            return [float(value) for value in values]
        numbers = [0.0 if isinstance(value, torch.Tensor) else float(value) for value in values]
        total = torch.tensor(numbers, dtype=torch.float64, device=self.device)
        for place, value in on_device:
            total[place] = value.detach()
        if self.world > 1:
            dist.all_reduce(total)
        return total.tolist()

    def sum_tensor(self, mine: torch.Tensor) -> torch.Tensor:
        """Returns a tensor of any shape summed over all ranks, on the CPU in float64. Every rank must call it, with
        tensors of one shape."""
        total = mine.to(self.device, torch.float64)
        if self.world > 1:
            total = total.clone()
            self.progress.heartbeat.enter_collective()
            dist.all_reduce(total)
        return total.cpu()

    def gather(self, mine: torch.Tensor) -> torch.Tensor:
        """Returns the rows of all ranks, (n, ...) -> (n x world, ...) on the CPU, interleaved: row i is row i // world
        of rank i % world. Every rank must call it, with tensors of one shape and type."""
        if self.world == 1:
            return mine.cpu()
        sent = mine.to(self.device).contiguous()
        sent = sent.to(torch.uint8) if sent.dtype == torch.bool else sent
        parts = [torch.empty_like(sent) for _ in range(self.world)]
        self.progress.heartbeat.enter_collective()
        dist.all_gather(parts, sent)
        return torch.stack(parts, dim=1).flatten(0, 1).to("cpu", mine.dtype)

    @property
    def gathers_weights(self) -> bool:
        """Returns whether ranks hold shards of the weights, and so must all make the same forward passes."""
        return self.group.strategy in ("zero3", "fsdp2")

    @contextmanager
    def generating(self, model: Any, part: torch.nn.Module) -> Iterator[bool]:
        """Returns the context of generating from a part of a prepared model, a whole rollout say: with weights gathered
        once where the plan says so. It gives whether all ranks must make the same forward passes. Every rank must enter
        it, and generate in it."""
        if not self.group.gathers_for_generation:
            yield self.gathers_weights
            return
        self.progress.heartbeat.enter_collective()
        with self._engine.whole(model, part):
            yield False

    def any(self, flag: bool) -> bool:
        """Returns whether the flag is set on any rank. Every rank must call it."""
        return self.sum(float(flag))[0] > 0

    def barrier(self) -> None:
        """Waits for all ranks. Every rank must call it."""
        self.progress.heartbeat.enter_collective()
        self.accelerator.wait_for_everyone()

    def prepare(self, model: torch.nn.Module, optimizer: torch.optim.Optimizer | None = None) -> Any:
        """Wraps a model (and optimizer) for the planned strategy; weights that are deferred are read one after another,
        and of each a rank keeps its part. Raises ScaleupError if another engine wraps it."""
        parts = (model,) if optimizer is None else (model, optimizer)
        with large_blocks_given_back():
            prepared = self._engine.prepare(self.accelerator, *parts)
        engine, stage = self._engine.wrapper(prepared if optimizer is None else prepared[0])
        _expect(self.group, "engine", self.group.engine, engine)
        _expect(self.group, "ZeRO stage", self.group.zero_stage, stage)
        return prepared

    def micro_batch(self, model: torch.nn.Module, last: bool) -> AbstractContextManager[Any]:
        """Returns the context of a micro-batch's forward and backward: gradients are reduced over ranks with the last
        micro-batch of a step only."""
        return self._engine.micro_batch(self.accelerator, model, last)

    def backward(self, model: Any, loss: torch.Tensor) -> None:
        """Adds the gradients of a micro-batch's loss, a scalar, to those of the step."""
        self.progress.heartbeat.enter_collective()
        self._engine.backward(self.accelerator, model, loss)

    def update(self, model: Any, optimizer: Any, max_grad_norm: float) -> tuple[float, bool]:
        """Clips gradients to `max_grad_norm` (0: no clipping), steps, and clears gradients. Returns the gradient norm
        and whether fp16 skipped the step.

        Raises NonFiniteError."""
        self.progress.heartbeat.enter_collective()
        return self._engine.update(self.accelerator, model, optimizer, max_grad_norm or math.inf)

    @property
    def divides_steps(self) -> bool:
        """Returns whether each rank steps its part of the weights, and holds that part's gradient alone."""
        return self._engine.divides

    def stepped(self, model: Any, optimizer: Any) -> list[torch.Tensor]:
        """Returns the tensors that a prepared optimizer steps on this rank: parameters or shards of them, or what
        several are laid flat in."""
        return self._engine.stepped(model, optimizer)

    @contextmanager
    def stepping_with(
        self, model: Any, optimizer: Any, use: Callable[[torch.Tensor, torch.Tensor], None]
    ) -> Iterator[None]:
        """Makes `update` call `use` with each tensor of `stepped` and what this rank holds of its gradient, unclipped:
        neither weights nor the optimizer's state move inside."""
        with self._engine.unclipped(model), gradients_taken(base_optimizer(optimizer), use):
            yield

    def trained_state(self, model: Any) -> dict[str, torch.Tensor]:
        """Returns float32 weights of the trained parameters by name, on rank 0. Every rank must call it."""
        state: dict[str, torch.Tensor] = {}
        for name, parameter in self._trained(model).items():
            if self.is_main or self._engine.divides:
                self.progress.heartbeat.enter_collective()
                whole = self._engine.gathered(parameter)
                if self.is_main:
                    state[name] = whole.cpu().clone()
        return state

    def hand_out(self, model: Any, use: Callable[[dict[str, torch.Tensor]], None]) -> None:
        """Calls `use`, on rank 0, with float32 weights of the trained parameters by name, each of which is gathered
        when it is read, and forgotten: no rank ever holds all. Every rank must call it: the others help until `use`
        returns, or fails."""
        parameters = list(self._trained(model).items())
        if not self.is_main:
            while self._engine.divides and (number := self._agreed(None)) < len(parameters):
                self._engine.gathered(parameters[number][1])
            return

        def read(number: int) -> torch.Tensor:
            if self._engine.divides:
                self._agreed(number)
            return self._engine.gathered(parameters[number][1]).cpu()

        shapes = [self._engine.shape(parameter) for _, parameter in parameters]
        try:
            use(
                {
                    name: deferred(partial(read, number), shapes[number], torch.float32)
                    for number, (name, _) in enumerate(parameters)
                }
            )
        finally:
            if self._engine.divides:
                self._agreed(len(parameters))

    def _agreed(self, number: int | None) -> int:
        """Returns the number that rank 0 gives."""
        self.progress.heartbeat.enter_collective()
        told = torch.tensor(0 if number is None else number, device=self.device)
        if self.world > 1:
            dist.broadcast(told, src=0)
        return int(told)

    def shard_again(self, model: Any) -> None:
        """Shards what a forward pass without a backward one left whole."""
        self._engine.shard_again(model)

    def _trained(self, model: Any) -> dict[str, torch.nn.Parameter]:
        """Returns the trained parameters by name, shared ones once."""
        self.shard_again(model)
        named = self.accelerator.unwrap_model(model).named_parameters()
        return {name: parameter for name, parameter in named if parameter.requires_grad}

    def save(self, model: torch.nn.Module, folder: Path) -> None:
        """Saves Accelerate's state; of a partly frozen model without the frozen weights, if the engine can leave them
        out."""
        self.progress.heartbeat.enter_collective()
        if not is_partly_frozen(model):
            self.accelerator.save_state(str(folder), safe_serialization=True)
            return
        with self._engine.frozen_left_out():
            self.accelerator.save_state(str(folder), safe_serialization=True, **self._engine.save_options())

    def load(self, model: torch.nn.Module, folder: Path) -> None:
        """Loads what `save` wrote."""
        self.progress.heartbeat.enter_collective()
        if not is_partly_frozen(model):
            self.accelerator.load_state(str(folder))
            return
        with self._engine.frozen_left_out():
            self.accelerator.load_state(str(folder), **self._engine.load_options())

    def put(self, model: Any, optimizer: Any, source: Source) -> None:
        """Copies a checkpoint's weights and optimizer state into what `prepare` returned. Every rank must call it."""
        self._engine.put(model, optimizer, source)

    def _check_world(self) -> None:
        _expect(self.group, "number of processes", self.group.num_processes, self.world)
        _expect(self.group, "distributed type", self.group.distributed_type, self.accelerator.distributed_type.value)
        _expect(self.group, "precision", self.group.mixed_precision, self.accelerator.mixed_precision)
        _expect(self.group, "device", self.group.device, self.device.type)
        if self.world == 1:
            return
        _expect(self.group, "backend", self.group.backend, dist.get_backend())
        identity = torch.tensor([self.rank, zlib.crc32(socket.gethostname().encode()), os.getpid()], device=self.device)
        identities = [torch.empty_like(identity) for _ in range(self.world)]
        dist.all_gather(identities, identity)
        answers = [tuple(other.tolist()) for other in identities]
        _expect(self.group, "distinct ranks that answer", self.world, len({rank for rank, _, _ in answers}))
        _expect(
            self.group, "distinct processes that answer", self.world, len({(host, pid) for _, host, pid in answers})
        )


def _check_environment(group: GroupPlan) -> None:
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world != group.num_processes:
        raise ScaleupError.of(
            f"group {group.name}",
            f"the plan is {group.num_processes} processes, and {world} were started",
            "start it with `scaleup run`, or `accelerate launch --config_file` and the run's own launch file",
        )


def _expect(group: GroupPlan, what: str, planned: object, actual: object) -> None:
    if planned != actual:
        raise ScaleupError.of(
            f"group {group.name}",
            f"{what}: the plan says {planned!r}, and {actual!r} came up",
            "plan and start it again",
        )


def is_partly_frozen(model: torch.nn.Module) -> bool:
    return not all(parameter.requires_grad for parameter in model.parameters())


def _only_trained(models: list[torch.nn.Module], weights: list[dict[str, torch.Tensor]], folder: str) -> None:
    """Drops frozen weights from what Accelerate is about to save: they stay as they were loaded."""
    for model, state in zip(models, weights, strict=False):  # there are none where the engine saves the model itself
        trained = {name for name, weight in model.named_parameters(remove_duplicate=False) if weight.requires_grad}
        if is_partly_frozen(model):
            for name in state.keys() - trained:
                del state[name]


def seed_everything(seed: int) -> None:
    """Seeds Python, NumPy and torch (all devices). Ranks create models with the same seed, and drop out with their
    own."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
