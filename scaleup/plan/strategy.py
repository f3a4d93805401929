"""A config and its predicted memory go in; the run's strategy comes out, with why, and what must come up for it.
`parallel.strategy: auto` is resolved here alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from scaleup.config.run import RunConfig
from scaleup.config.schema import ParallelConfig
from scaleup.config.stages.base import TrainingConfig
from scaleup.errors import Problem, ScaleupError
from scaleup.plan.compat import allowed
from scaleup.plan.deepspeed import deepspeed_settings
from scaleup.plan.machine import Machine
from scaleup.plan.types import MemoryPlan

FOR_ACTIVATIONS = 0.3
"""Is the share of a rank's memory that `auto` leaves to activations of a model that cannot be traced: a guess."""
MARGIN = 0.1
"""Is the share of it that `auto` leaves beside a predicted peak: to the libraries' own memory and to fragmentation."""

BY_COMMUNICATION = ("ddp", "zero1", "zero2", "fsdp2")
"""Lists what `auto` tries for several processes, in this order: docs/design/auto.md."""


class NothingFits(ScaleupError):
    """Tells that `auto` has no strategy whose peak fits, or that a host cannot hold what is loaded."""


@dataclass(frozen=True)
class RankBudget:
    """Holds the bytes of memory that a rank has: its device's, and its part of the node's; None if unknown."""

    device: Literal["cpu", "cuda"]
    memory: int | None
    host: int | None

    def fits(self, plan: MemoryPlan) -> bool:
        """Returns whether the plan's peak fits beside a margin; where it is unknown, whether enough is left for
        activations."""
        if self.memory is None or self.needs(plan) > self.memory * (1 - margin_of(plan)):
            return False
        return self.device == "cpu" or self.host is None or plan.host <= self.host

    def needs(self, plan: MemoryPlan) -> int:
        """Returns the bytes of the plan on the device. On a CPU, what is offloaded stays in the same memory."""
        on_device = plan.total if plan.peak is None else plan.peak
        return on_device + (plan.host if self.device == "cpu" else 0)


def margin_of(plan: MemoryPlan) -> float:
    return FOR_ACTIVATIONS if plan.peak is None else MARGIN


def budget_of(config: RunConfig, machine: Machine, device: Literal["cpu", "cuda"]) -> RankBudget:
    """Returns a rank's budget on the machine that plans; nodes are taken to be alike."""
    on_a_node = config.parallel.num_processes // config.parallel.num_nodes
    host = None if machine.memory is None else machine.memory // on_a_node
    return RankBudget(device, host if device == "cpu" else machine.gpu_memory, host)


def candidates(parallel: ParallelConfig) -> list[str]:
    """Returns the strategies that `auto` tries in order. Offloading that the config sets is kept."""
    if parallel.offload_parameters:
        return ["zero3"]
    if parallel.offload_optimizer:
        return ["zero1", "zero2", "zero3"]
    return list(BY_COMMUNICATION) if parallel.num_processes > 1 else ["single"]


def available(config: RunConfig) -> list[str]:
    """Returns every strategy that this run could use as it is."""
    parallel = config.parallel
    whole = "single" if parallel.num_processes == 1 else "ddp"
    if not isinstance(config, TrainingConfig):
        return [whole]
    if parallel.offload_parameters or parallel.offload_optimizer:
        return allowed(config, candidates(parallel))
    return allowed(config, [whole, "zero1", "zero2", "zero3", "fsdp2"])


def choose_strategy(
    config: RunConfig, memory: Sequence[MemoryPlan], budget: RankBudget, before: str | None
) -> tuple[str, str | None]:
    """Returns the run's strategy, and why if it was `auto` that chose it. `memory` is what a rank holds under each that
    is available; `before` is what this very run, unfinished, used.

    Raises NothingFits at parallel.strategy, and ScaleupError there if the memory of a rank is unknown."""
    parallel = config.parallel
    wanted = parallel.strategy
    if not isinstance(config, TrainingConfig) or wanted in ("single", "ddp"):
        return ("single" if parallel.num_processes == 1 else "ddp"), None
    if wanted != "auto":
        return wanted, None
    tried = allowed(config, candidates(parallel))
    if before in tried:
        return before, "as this run began"
    if budget.memory is None:
        what = "auto needs to know how much memory a rank has, and this machine does not tell"
        source = "nvidia-smi" if budget.device == "cuda" else "/proc/meminfo"
        raise ScaleupError.of("parallel.strategy", what, f"name a strategy, or plan where {source} answers")
    held = [row for name in tried for row in memory if row.strategy == name]
    fitting = next((plan for plan in held if budget.fits(plan)), None)
    if fitting is None:
        raise _nothing_fits(config, held, budget)
    return fitting.strategy, _why(fitting, held, budget)


def group_settings(config: RunConfig, strategy: str, why: str | None, device: str) -> dict[str, Any]:
    """Returns the settings of a group that follow from its strategy: its name and why, and what must come up in every
    worker."""
    count, named = config.parallel.num_processes, {"strategy": strategy, "is_chosen": why is not None}
    reason = f"; chosen by auto: {why}" if why else ""
    if strategy.startswith("zero"):
        assert isinstance(config, TrainingConfig)
        stage = int(strategy.removeprefix("zero"))
        sharded = ["optimizer state", "gradients", "parameters"][:stage]
        what = f"ZeRO-{stage}: {', '.join(sharded)} sharded over {count} process(es) by DeepSpeed"
        expected = {"distributed_type": "DEEPSPEED", "engine": "DeepSpeedEngine", "zero_stage": stage}
        return {**named, "why": what + reason, "deepspeed": deepspeed_settings(config, stage), **expected}
    if strategy == "fsdp2":
        what = f"parameters, gradients and optimizer state sharded over {count} process(es) by torch"
        return {**named, "why": what + reason, "distributed_type": "FSDP", "engine": "FSDPModule"}
    if strategy == "single":
        what = "one process needs no wrapper around the model"
        return {**named, "why": what + reason, "distributed_type": "NO", "engine": "none"}
    what = f"each of {count} processes holds the whole model"
    multi = "MULTI_CPU" if device == "cpu" else "MULTI_GPU"
    return {**named, "why": what + reason, "distributed_type": multi, "engine": "DistributedDataParallel"}


def _why(chosen: MemoryPlan, held: list[MemoryPlan], budget: RankBudget) -> str:
    """Returns what the strategy needs of the memory there is, and what was passed over for it."""
    passed = held[: held.index(chosen)]
    over = f"; {', '.join(f'{plan.strategy} needs {gibibytes(budget.needs(plan))}' for plan in passed)}"
    return f"it needs {gibibytes(budget.needs(chosen))} a rank of {_of(budget, chosen)}" + (over if passed else "")


def _nothing_fits(config: TrainingConfig, held: list[MemoryPlan], budget: RankBudget) -> NothingFits:
    least = min(held, key=budget.needs)
    what = f"nothing fits: {least.strategy} needs {gibibytes(budget.needs(least))} a rank of {_of(budget, least)}"
    if budget.device == "cuda" and least.host:
        what += f", and {gibibytes(least.host)} of main memory"
    parallel, train = config.parallel, config.train
    remedies = ["more processes"] if budget.device == "cuda" else ["machines with more memory", "more nodes"]
    if budget.device == "cuda" and not parallel.offload_optimizer and train.optimizer == "adamw":
        remedies.append("parallel.offload_optimizer: true")
    if train.optimizer == "adamw" and not parallel.offload_optimizer:
        remedies.append("train.optimizer: sgd")
    if least.gathered:
        remedies.append("parallel.gather_for_generation: auto")
    return NothingFits(Problem("parallel.strategy", what, f"use {', '.join(remedies)}, or a smaller model"))


def _of(budget: RankBudget, plan: MemoryPlan) -> str:
    assert budget.memory is not None
    part = 1 - margin_of(plan)
    return f"the {gibibytes(int(budget.memory * part))} that {part:.0%} of its {gibibytes(budget.memory)} are"


def gibibytes(size: int) -> str:
    return f"{size / 2**30:,.2f} GiB"
