"""A config and its models' facts go in; the groups of the run come out: the one that trains, generates or evaluates,
and a group for each reward model beside a policy."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal

from scaleup.config.generator import GENERATOR, GeneratorConfig
from scaleup.config.reward_source import RewardSource, WeightedReward
from scaleup.config.run import RunConfig
from scaleup.config.schema import ParallelConfig
from scaleup.errors import Problem
from scaleup.plan.deepspeed import inference_settings
from scaleup.plan.generators import generator_plan
from scaleup.plan.machine import Machine
from scaleup.plan.strategy import budget_of, choose_strategy, group_settings
from scaleup.plan.types import BridgePlan, GroupPlan, MemoryPlan


def device_of(parallel: ParallelConfig, machine: Machine) -> Literal["cpu", "cuda"]:
    if parallel.device == "auto":
        return "cuda" if machine.num_gpus else "cpu"
    return parallel.device


BEFORE_COLLECTIVES = 0.9
"""Is the share of a collective's timeout after which a group that stands still hangs: later it would end unnamed."""
BESIDE_AN_ANSWER = 30.0
"""Is the time in seconds by which waiting for scores may last longer than the answer."""


def progress_timeout(config: RunConfig) -> float:
    """Returns the seconds without progress after which the leading group counts as hung: what the config sets, or nine
    tenths of a collective's timeout, and more than it may have to wait for scores."""
    parallel = config.parallel
    if parallel.progress_timeout_seconds is not None:
        return parallel.progress_timeout_seconds
    slowest = config.slowest_reward
    answer = 0.0 if slowest is None else slowest.source.timeout_seconds
    return max(BEFORE_COLLECTIVES * parallel.timeout_seconds, answer + BESIDE_AN_ANSWER)


def patience_problems(config: RunConfig) -> Iterator[Problem]:
    progress, timeout = config.parallel.progress_timeout_seconds, config.parallel.timeout_seconds
    where, slowest = "parallel.progress_timeout_seconds", config.slowest_reward
    if progress is not None and progress >= timeout:
        what = f"{progress} is not less than timeout_seconds {timeout}: a collective would end first, and name no rank"
        yield Problem(where, what, f"use at most {int(BEFORE_COLLECTIVES * timeout)}, or raise timeout_seconds")
    if progress is not None and slowest is not None and progress <= slowest.source.timeout_seconds:
        key, answer = f"{slowest.key}.timeout_seconds", slowest.source.timeout_seconds
        what = f"{progress} is not more than {key} {answer:g}, which the policy may wait for scores"
        yield Problem(where, what, f"use more, or lower {key}")


def groups_of(config: RunConfig, machine: Machine, memory: Sequence[MemoryPlan], before: str | None) -> list[GroupPlan]:
    """Returns the groups of a run, the leading one first. `memory` is what a rank of it holds under each strategy,
    `before` its strategy so far.

    Raises ScaleupError as `choose_strategy` does."""
    groups = [_policy_group(config, machine, memory, before)]
    for reward in config.reward_groups:
        groups.append(_reward_group(config, reward, machine, groups))
    if (generator := config.generator_group) is not None:
        groups.append(_generator_group(config, generator, machine, groups))
    return groups


def bridges_of(config: RunConfig, policy: GroupPlan) -> dict[str, BridgePlan]:
    """Returns where the policy listens for each group that serves it, by the group's name."""
    bridges = {reward.group: _bridge_of(reward.source, policy) for reward in config.reward_groups}
    if (generator := config.generator_group) is not None:  # on the first node, where the policy's rank 0 is
        bridges[GENERATOR] = BridgePlan(address="127.0.0.1", port=generator.bridge_port)
    return bridges


def _bridge_of(reward: RewardSource, policy: GroupPlan) -> BridgePlan:
    is_on_one_node = policy.num_nodes == 1 and not reward.own_nodes
    return BridgePlan(address="127.0.0.1" if is_on_one_node else policy.main_address, port=reward.bridge_port)


def devices_taken(groups: Sequence[GroupPlan], node: int) -> int:
    """Returns the number of GPUs of a node that groups use."""
    on_gpus = [group for group in groups if group.device == "cuda" and group.is_on(node)]
    return sum(group.num_processes // group.num_nodes for group in on_gpus)


def resized(group: GroupPlan, num_processes: int) -> GroupPlan:
    """Returns a serving group with another number of processes, on the same cores and under the same strategy."""
    threads = max(1, group.threads_per_process * group.num_processes // num_processes)
    settings = {}
    if group.generator is None:
        settings = _serving_settings(group.strategy, num_processes, group.device, group.deepspeed)
    sizes = {"num_processes": num_processes, "threads_per_process": threads}
    return GroupPlan.model_validate({**group.model_dump(), **settings, **sizes})


def _policy_group(config: RunConfig, machine: Machine, memory: Sequence[MemoryPlan], before: str | None) -> GroupPlan:
    parallel, device = config.parallel, device_of(config.parallel, machine)
    strategy, why = choose_strategy(config, memory, budget_of(config, machine, device), before)
    return GroupPlan(
        name="policy",
        timeout_seconds=parallel.timeout_seconds,
        heartbeat_timeout_seconds=parallel.heartbeat_timeout_seconds,
        progress_timeout_seconds=progress_timeout(config),
        num_processes=parallel.num_processes,
        num_nodes=parallel.num_nodes,
        device=device,
        backend="gloo" if device == "cpu" else "nccl",
        mixed_precision=config.mixed_precision,
        threads_per_process=_threads(config, machine),
        main_address=parallel.main_address,
        main_port=parallel.main_port,
        interface=parallel.interface,
        **group_settings(config, strategy, why, device),
    )


def _reward_group(
    config: RunConfig, reward: WeightedReward, machine: Machine, before: Sequence[GroupPlan]
) -> GroupPlan:
    """Plans a reward group on the first node, beside the processes of the groups `before` it, the policy's first; or on
    a node after the policy's."""
    source, policy = reward.source, before[0]
    parallel = source.parallel
    device = device_of(parallel, machine)
    node = policy.num_nodes if source.own_nodes else 0
    settings = inference_settings(parallel, source.mixed_precision)
    return GroupPlan(
        name=reward.group,
        serves=True,
        max_restarts=source.max_restarts,
        timeout_seconds=parallel.timeout_seconds,
        heartbeat_timeout_seconds=parallel.heartbeat_timeout_seconds,
        first_device=devices_taken(before, node) if device == "cuda" else 0,
        num_processes=parallel.num_processes,
        num_nodes=1,
        first_node=node,
        device=device,
        backend="gloo" if device == "cpu" else "nccl",
        mixed_precision=source.mixed_precision,
        threads_per_process=_threads(config, machine, on_own_nodes=source.own_nodes),
        main_address=None,
        main_port=parallel.main_port,
        interface=parallel.interface or policy.interface,
        **_serving_settings(parallel.strategy, parallel.num_processes, device, settings),
    )


def _generator_group(
    config: RunConfig, generator: GeneratorConfig, machine: Machine, before: Sequence[GroupPlan]
) -> GroupPlan:
    """Plans an engine on the first node. It has the node's cores for itself, unless it draws while the policy
    learns."""
    parallel, device = generator.parallel, device_of(generator.parallel, machine)
    threads = _threads(config, machine) if generator.staleness else max(1, machine.num_cores // parallel.num_processes)
    cut = f", cut over {parallel.num_processes} processes" if parallel.num_processes > 1 else ""
    return GroupPlan(
        name=GENERATOR,
        generator=generator_plan(config, generator),
        serves=True,
        max_restarts=generator.max_restarts,
        heartbeat_timeout_seconds=parallel.heartbeat_timeout_seconds,
        first_device=devices_taken(before, 0) if device == "cuda" else 0,
        num_processes=parallel.num_processes,
        num_nodes=1,
        device=device,
        backend="gloo" if device == "cpu" else "nccl",
        strategy="single",
        why=f"vLLM draws by a copy of the policy's weights{cut}",
        distributed_type="NO",
        engine="none",
        mixed_precision=config.mixed_precision,
        threads_per_process=threads,
        main_address=None,
        main_port=None,
    )


def _threads(config: RunConfig, machine: Machine, on_own_nodes: bool = False) -> int:
    """Returns the threads of each process on the first node, or on the reward groups' own: the cores of a node divided
    by the processes of all groups there."""
    sources = [reward.source for reward in config.reward_groups if reward.source.own_nodes == on_own_nodes]
    count = sum(source.parallel.num_processes for source in sources)
    if not on_own_nodes:
        generator = config.generator_group
        count += config.parallel.num_processes // config.parallel.num_nodes
        count += generator.parallel.num_processes if generator is not None and generator.staleness else 0
    return max(1, machine.num_cores // max(1, count))


def _serving_settings(strategy: str, count: int, device: str, deepspeed: dict[str, Any] | None) -> dict[str, Any]:
    """Returns `group_settings` for a model that is not trained: sharded, or whole on each rank and not wrapped."""
    if strategy == "zero3":
        what = f"ZeRO-3: parameters sharded over {count} process(es) by DeepSpeed"
        expected = {"distributed_type": "DEEPSPEED", "engine": "DeepSpeedEngine", "zero_stage": 3}
        return {"strategy": strategy, "why": what, "deepspeed": deepspeed, **expected}
    if strategy == "fsdp2":
        what = f"parameters sharded over {count} process(es) by torch"
        return {"strategy": strategy, "why": what, "distributed_type": "FSDP", "engine": "FSDPModule"}
    if count == 1:
        what = "one process needs no wrapper around the model"
        return {"strategy": "single", "why": what, "distributed_type": "NO", "engine": "none"}
    what = f"each of {count} processes holds the whole model, and answers for itself"
    multi = "MULTI_CPU" if device == "cpu" else "MULTI_GPU"
    return {"strategy": "ddp", "why": what, "distributed_type": multi, "engine": "none"}
