"""Which strategy a run uses, and what must come up for it. `parallel.strategy: auto` is settled here, and only here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from scaleup.config.schema import ParallelConfig, RunConfig
from scaleup.config.stages import SupervisedConfig
from scaleup.errors import ScaleupError
from scaleup.plan.compat import allowed
from scaleup.plan.deepspeed import deepspeed_settings
from scaleup.plan.facts import ModelFacts
from scaleup.plan.machine import Machine
from scaleup.plan.peak import predicted_memory
from scaleup.plan.types import MemoryPlan

FOR_ACTIVATIONS = 0.3
"""The share of a rank's memory that `auto` leaves to activations of a model that cannot be traced: a guess."""
MARGIN = 0.1
"""The share of it that `auto` leaves beside a predicted peak: to the libraries' own memory and to fragmentation."""

BY_COMMUNICATION = ("ddp", "zero1", "zero2", "fsdp2")
"""What `auto` tries for several processes, in this order: docs/design/auto.md."""


@dataclass(frozen=True)
class Share:
    """What memory a rank has: its device's, and its part of the node's. None where it cannot be known."""

    device: Literal["cpu", "cuda"]
    memory: int | None
    host: int | None

    def fits(self, plan: MemoryPlan) -> bool:
        """Whether its peak fits beside a margin; where that is not known, whether enough is left for activations."""
        if self.memory is None or self.needs(plan) > self.memory * (1 - margin_of(plan)):
            return False
        return self.device == "cpu" or self.host is None or plan.host <= self.host

    def needs(self, plan: MemoryPlan) -> int:
        """On a CPU, what is offloaded stays in the same memory."""
        on_device = plan.total if plan.peak is None else plan.peak
        return on_device + (plan.host if self.device == "cpu" else 0)


def margin_of(plan: MemoryPlan) -> float:
    return FOR_ACTIVATIONS if plan.peak is None else MARGIN


def share_of(config: RunConfig, machine: Machine, device: Literal["cpu", "cuda"]) -> Share:
    """Of the memory of the machine that plans; nodes are taken to be alike."""
    on_a_node = config.parallel.num_processes // config.parallel.num_nodes
    host = None if machine.memory is None else machine.memory // on_a_node
    return Share(device, host if device == "cpu" else machine.gpu_memory, host)


def candidates(parallel: ParallelConfig) -> list[str]:
    """What `auto` may choose: the first that fits. Offloading was asked for, so it is kept."""
    if parallel.offload_parameters:
        return ["zero3"]
    if parallel.offload_optimizer:
        return ["zero1", "zero2", "zero3"]
    return list(BY_COMMUNICATION) if parallel.num_processes > 1 else ["single"]


def available(config: RunConfig) -> list[str]:
    """Every strategy that this run could use as it is."""
    parallel = config.parallel
    whole = "single" if parallel.num_processes == 1 else "ddp"
    if not isinstance(config, SupervisedConfig):
        return [whole]
    if parallel.offload_parameters or parallel.offload_optimizer:
        return allowed(config, candidates(parallel))
    return allowed(config, [whole, "zero1", "zero2", "zero3", "fsdp2"])


def settle(config: RunConfig, facts: ModelFacts, share: Share, before: str | None) -> tuple[str, str | None]:
    """The run's strategy, and why if it was `auto` that chose it. `before` is what this very run, unfinished, used.

    Raises ScaleupError at parallel.strategy when nothing fits, or when there is no knowing."""
    parallel = config.parallel
    wanted = parallel.strategy
    if not isinstance(config, SupervisedConfig) or wanted in ("single", "ddp"):
        return ("single" if parallel.num_processes == 1 else "ddp"), None
    if wanted != "auto":
        return wanted, None
    tried = allowed(config, candidates(parallel))
    if before in tried:
        return before, "as this run began"
    if share.memory is None:
        what = "auto needs to know how much memory a rank has, and this machine does not tell"
        asked = "nvidia-smi" if share.device == "cuda" else "/proc/meminfo"
        raise ScaleupError.of("parallel.strategy", what, f"name a strategy, or plan where {asked} answers")
    held = [predicted_memory(facts, config, name, parallel.num_processes) for name in tried]
    fitting = next((plan for plan in held if share.fits(plan)), None)
    if fitting is None:
        raise _nothing_fits(config, held, share)
    return fitting.strategy, _why(fitting, held, share)


def group_settings(config: RunConfig, strategy: str, why: str | None, device: str) -> dict[str, Any]:
    """What the strategy decides of a group: its name and why, and what must come up in every worker."""
    count, named = config.parallel.num_processes, {"strategy": strategy, "is_chosen": why is not None}
    reason = f"; chosen by auto: {why}" if why else ""
    if strategy.startswith("zero"):
        assert isinstance(config, SupervisedConfig)
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


def _why(chosen: MemoryPlan, held: list[MemoryPlan], share: Share) -> str:
    """What it needs of what there is, and what was passed over for it."""
    passed = held[: held.index(chosen)]
    over = f"; {', '.join(f'{plan.strategy} needs {_gibibytes(share.needs(plan))}' for plan in passed)}"
    return f"it needs {_gibibytes(share.needs(chosen))} a rank of {_of(share, chosen)}" + (over if passed else "")


def _nothing_fits(config: SupervisedConfig, held: list[MemoryPlan], share: Share) -> ScaleupError:
    least = min(held, key=share.needs)
    what = f"nothing fits: {least.strategy} needs {_gibibytes(share.needs(least))} a rank of {_of(share, least)}"
    if share.device == "cuda" and least.host:
        what += f", and {_gibibytes(least.host)} of main memory"
    parallel, train = config.parallel, config.train
    remedies = ["more processes"] if share.device == "cuda" else ["machines with more memory", "more nodes"]
    if share.device == "cuda" and not parallel.offload_optimizer and train.optimizer == "adamw":
        remedies.append("parallel.offload_optimizer: true")
    if train.optimizer == "adamw" and not parallel.offload_optimizer:
        remedies.append("train.optimizer: sgd")
    return ScaleupError.of("parallel.strategy", what, f"use {', '.join(remedies)}, or a smaller model")


def _of(share: Share, plan: MemoryPlan) -> str:
    assert share.memory is not None
    part = 1 - margin_of(plan)
    return f"the {_gibibytes(int(share.memory * part))} that {part:.0%} of its {_gibibytes(share.memory)} are"


def _gibibytes(size: int) -> str:
    return f"{size / 2**30:,.2f} GiB"
