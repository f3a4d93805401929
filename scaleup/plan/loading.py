"""Planned groups and their memory go in; the main memory that loading takes on a rank and on a node comes out, and a
refusal where a node has less.

Weights are read one after another into what a rank keeps (docs/design/loading.md): beside that there are never more
than the parameter at hand, its cast, and what quantizing it takes. On a GPU they go on to its memory, and are quantized
there; on a CPU they stay."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping

from scaleup.config.run import RunConfig
from scaleup.errors import Problem
from scaleup.plan.facts import ModelFacts
from scaleup.plan.generators import generator_loading
from scaleup.plan.memory import FLOAT32
from scaleup.plan.types import GroupPlan, LoadingPlan, MemoryPlan

PASSING, QUANTIZING = 2, 4
"""Count the copies in float32 of a parameter that a rank has beside what it keeps while it reads it, and while
bitsandbytes quantizes it on a CPU."""
GIB = 2**30


def loading_of(group: GroupPlan, held: MemoryPlan, models: Iterable[ModelFacts]) -> LoadingPlan:
    """Returns what loading `models` takes on the host, for a group whose ranks hold `held`. DeepSpeed makes room for
    gradients and the optimizer's state when it wraps a model."""
    on_host = group.device == "cpu"
    kept = (held.weights + held.reference if on_host else 0) + held.host
    if on_host and group.strategy.startswith("zero"):
        kept += held.gradients + held.optimizer
    copies = QUANTIZING if on_host else PASSING
    tensors = [each for facts in models for each in facts.tensors]
    rank = kept + FLOAT32 * max(each.elements * (copies if each.quantized else PASSING) for each in tensors)
    return LoadingPlan(group=group.name, kept=kept, rank=rank, node=rank * (group.num_processes // group.num_nodes))


def loading_plans(
    config: RunConfig,
    groups: list[GroupPlan],
    memory: list[MemoryPlan],
    serving: Mapping[str, MemoryPlan],
    facts: Mapping[str, ModelFacts],
) -> list[LoadingPlan]:
    """Returns what loading takes in each group. `serving` maps the name of each that serves -> the memory of a rank."""
    first = groups[0]
    held = next((row for row in memory if row.strategy == first.strategy), None)
    if held is None:
        return []
    elsewhere = {reward.group: f"{reward.key}.model" for reward in config.reward_groups}
    plans = [loading_of(first, held, [each for where, each in facts.items() if where not in elsewhere.values()])]
    for group in groups[1:]:
        if group.generator is not None:
            plans.append(generator_loading(group, serving[group.name], facts["model"]))
        else:
            plans.append(loading_of(group, serving[group.name], [facts[elsewhere[group.name]]]))
    return plans


def host_problems(groups: list[GroupPlan], loading: list[LoadingPlan], has: int | None) -> Iterator[Problem]:
    """Yields the problem of a node that has less main memory, `has` bytes, than loading takes; none if that is not
    known."""
    nodes: Counter[int] = Counter({0: 0})
    for group, plan in zip(groups, loading, strict=False):
        nodes.update({group.first_node + number: plan.node for number in range(group.num_nodes)})
    node, needed = nodes.most_common(1)[0]
    if has is None or needed <= has:
        return
    here = [
        (group.num_processes // group.num_nodes, plan.rank / GIB)
        for group, plan in zip(groups, loading, strict=False)
        if group.is_on(node)
    ]
    parts = " and ".join(f"{ranks} rank{'s' if ranks > 1 else ''} of {size:,.2f} GiB" for ranks, size in here)
    what = f"loading takes {needed / GIB:,.2f} GiB of a node's main memory ({parts}), and it has {has / GIB:,.2f} GiB"
    is_whole = groups[0].strategy in ("single", "ddp", "zero1", "zero2") and groups[0].device == "cpu"
    ways = ["parallel.strategy: fsdp2 on more nodes"] if is_whole else ["more nodes"]
    yield Problem("parallel.num_processes", what, f"use {ways[0]}, nodes with more memory, or a smaller model")
