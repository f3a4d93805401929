"""A run's plan and this machine go in; findings come out where the machine lacks what the plan needs."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator

from scaleup.config.run import RunConfig
from scaleup.config.stages.base import TrainingConfig
from scaleup.doctor.finding import Finding, fail, ok, size_text, warn
from scaleup.doctor.storage import Need
from scaleup.plan.machine import Machine
from scaleup.plan.memory import FLOAT32, moments, width_of
from scaleup.plan.stages import planner_of
from scaleup.plan.strategy import MARGIN
from scaleup.plan.torch_facts import TorchFacts
from scaleup.plan.types import GroupPlan, Plan

IN_SRUN = "srun bash -c 'scaleup doctor CONFIG --nodes {n} --node-rank $SLURM_PROCID'"
"""Starts the doctor within srun. The rank is expanded on the node: where srun is started it is 0, or nothing."""


def plan_findings(plan: Plan, node_rank: int, num_nodes: int, machine: Machine) -> Iterator[Finding]:
    groups = [f"{g.name}: {g.num_processes} x {g.device} on {g.num_nodes} node(s), {g.strategy}" for g in plan.groups]
    yield ok("plan", "; ".join(groups))
    yield from _nodes(plan, num_nodes)
    here = [group for group in plan.groups if group.is_on(node_rank)]
    yield from _cores(here, machine)
    yield from _memory(plan)


def _nodes(plan: Plan, num_nodes: int) -> Iterator[Finding]:
    if plan.num_nodes > num_nodes:
        what = f"the run needs {plan.num_nodes}, and {num_nodes} looked at this"
        yield warn("nodes", what, f"run it on all: {IN_SRUN.format(n=plan.num_nodes)}")
    elif plan.num_nodes < num_nodes:
        yield warn("nodes", f"{num_nodes} looked at this, and the run uses {plan.num_nodes}", "ask for fewer")


def on_node(group: GroupPlan) -> int:
    """Return the number of processes of a group on each of its nodes."""
    return group.num_processes // group.num_nodes


def _cores(here: list[GroupPlan], machine: Machine) -> Iterator[Finding]:
    processes = sum(on_node(group) for group in here)
    what = f"{processes} process(es) on this node's {machine.num_cores} cores"
    if processes > machine.num_cores:
        yield warn("cores", what, "ask for more cores, or use fewer processes: they take turns")
    elif processes:
        yield ok("cores", what)


def _memory(plan: Plan) -> Iterator[Finding]:
    """Yield whether memory is enough, as `scaleup plan` predicts it, with the same margin."""
    group = plan.groups[0]
    row = next((row for row in plan.memory if row.strategy == group.strategy), None)
    if row is None or plan.device_memory is None:
        yield warn("memory", "memory of a rank: unknown", "see `scaleup plan`")
        return
    needs = (row.total if row.peak is None else row.peak) + (row.host if group.device == "cpu" else 0)
    what = f"a rank needs {size_text(needs)} of {size_text(plan.device_memory)}"
    what += " before activations" if row.peak is None else " at its peak"
    remedy = "more processes under zero3 or fsdp2, smaller micro-batches, or gradient_checkpointing: see `scaleup plan`"
    if needs > plan.device_memory:
        yield fail("memory", f"{what} (predicted)", remedy)
    elif plan.fitting is not None and group.strategy not in plan.fitting:
        yield warn("memory", f"{what} (predicted), with less than {MARGIN:.0%} to spare", remedy)
    else:
        yield ok("memory", f"{what} (predicted)")


def torch_findings(plan: Plan, node_rank: int, facts: TorchFacts) -> Iterator[Finding]:
    """Yield what the run's groups on this node need of torch and of the devices."""
    here = [group for group in plan.groups if group.is_on(node_rank)]
    needed = sum(on_node(group) for group in here if group.device == "cuda")
    if needed > len(facts.devices):
        what = f"the run needs {needed} on this node, and torch finds {len(facts.devices)}"
        yield fail("GPUs", what, "use fewer processes or more nodes, or parallel.device: cpu")
    for group in here:
        if group.num_processes > 1 and group.backend not in facts.backends:
            what = f"group {group.name} talks through {group.backend}, and this torch has {', '.join(facts.backends)}"
            yield fail("torch", what, "install another build of torch")
        yield from _group_precision(group, facts)
    yield from _operations(here, facts)


def _group_precision(group: GroupPlan, facts: TorchFacts) -> Iterator[Finding]:
    if group.mixed_precision == "no":
        return
    key = "mixed_precision" if not group.serves else f"{group.name}.mixed_precision"
    if group.mixed_precision == "bf16" and group.device == "cuda":
        lacking = sorted({device.name for device in facts.devices if not device.bf16})
        if lacking:
            yield fail(key, f"{', '.join(lacking)}: no arithmetic in bf16", "use fp16")
            return
    if group.mixed_precision == "bf16" and group.device == "cpu":
        if facts.cpu_bf16 is None:
            yield fail(key, "torch cannot compute in bf16 on this CPU", 'use "no"')
            return
        if facts.cpu_bf16 > 1:
            what = f"bf16 saves no time here: a product takes {facts.cpu_bf16:.1f} x float32's time on this CPU"
            yield warn(key, what, 'use "no", if memory allows')
            return
    yield ok(key, f"{group.mixed_precision} on {group.device}")


def _operations(here: list[GroupPlan], facts: TorchFacts) -> Iterator[Finding]:
    """Yield what is missing of DeepSpeed's operations for CPUs: what a run under ZeRO lacks of them, it compiles before
    its first step."""
    needed = {op for group in here for op in _operations_of(group)}
    missing = sorted(needed - set(facts.ops_built))
    name, compiler = "DeepSpeed's operations", (os.environ.get("CXX") or "c++").split()[0]
    if needed and not missing:
        yield ok(name, f"{', '.join(sorted(needed))} in {facts.ops_folder}")
    elif missing and shutil.which(compiler) is None:
        what = f"{', '.join(missing)}: to be compiled, and there is no C++ compiler {compiler!r}"
        yield fail(name, what, "install one (Debian: apt install g++), or set CXX=/path/to/g++")
    elif missing:
        what = f"{', '.join(missing)}: compiled at the first start, which takes minutes"
        yield warn(
            name, what, "start once on one node before many wait for it, or python -m scaleup.distributed.deepspeed_ops"
        )


def _operations_of(group: GroupPlan) -> Iterator[str]:
    if group.deepspeed is None:
        return
    if group.device == "cpu":
        yield "deepspeed_shm_comm"
    if group.deepspeed["zero_optimization"].get("offload_optimizer", {}).get("device") == "cpu":
        yield "cpu_adam"


def need_of(config: RunConfig, plan: Plan) -> Need | None:
    """Return the bytes that the run writes. A checkpoint holds what is trained, and the optimizer's state of it, in
    float32; ZeRO below that keeps the low weights beside a float32 copy of its own."""
    if not isinstance(config, TrainingConfig):
        return None
    trained = planner_of(config).trained(config, plan.facts).num_trainable_parameters
    width = FLOAT32 * (1 + moments(config.train))
    if plan.groups[0].zero_stage is not None and config.mixed_precision != "no":
        width += width_of(config)
    kept = config.train.save_total_limit + 1 + (config.train.eval_steps is not None)  # one aside, and the best one
    return Need(checkpoint=trained * width, kept=kept, model=trained * FLOAT32)
