"""A config and its models' facts go in; the groups of the run come out: the one that trains, generates or evaluates,
and a reward model's own beside a PPO policy."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal

from scaleup.config.reward_source import RewardSource
from scaleup.config.run import RunConfig
from scaleup.config.schema import ParallelConfig
from scaleup.errors import Problem
from scaleup.plan.deepspeed import inference_settings
from scaleup.plan.machine import Machine
from scaleup.plan.strategy import budget_of, choose_strategy, group_settings
from scaleup.plan.types import BridgePlan, GroupPlan, MemoryPlan

REWARD = "reward"


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
    return max(BEFORE_COLLECTIVES * parallel.timeout_seconds, config.answer_seconds + BESIDE_AN_ANSWER)


def patience_problems(config: RunConfig) -> Iterator[Problem]:
    progress, timeout = config.parallel.progress_timeout_seconds, config.parallel.timeout_seconds
    where, answer = "parallel.progress_timeout_seconds", config.answer_seconds
    if progress is not None and progress >= timeout:
        what = f"{progress} is not less than timeout_seconds {timeout}: a collective would end first, and name no rank"
        yield Problem(where, what, f"use at most {int(BEFORE_COLLECTIVES * timeout)}, or raise timeout_seconds")
    if progress is not None and progress <= answer:
        what = f"{progress} is not more than reward.timeout_seconds {answer:g}, which the policy may wait for scores"
        yield Problem(where, what, "use more, or lower reward.timeout_seconds")


def groups_of(config: RunConfig, machine: Machine, memory: Sequence[MemoryPlan], before: str | None) -> list[GroupPlan]:
    """Returns the groups of a run, the leading one first. `memory` is what a rank of it holds under each strategy,
    `before` its strategy so far.

    Raises ScaleupError as `choose_strategy` does."""
    policy = _policy_group(config, machine, memory, before)
    reward = config.reward_group
    return [policy] if reward is None else [policy, _reward_group(config, reward, machine, policy)]


def bridge_of(config: RunConfig, policy: GroupPlan) -> BridgePlan | None:
    if (reward := config.reward_group) is None:
        return None
    is_on_one_node = policy.num_nodes == 1 and not reward.own_nodes
    return BridgePlan(address="127.0.0.1" if is_on_one_node else policy.main_address, port=reward.bridge_port)


def resized(group: GroupPlan, num_processes: int) -> GroupPlan:
    """Returns a serving group with another number of processes, on the same cores and under the same strategy."""
    threads = max(1, group.threads_per_process * group.num_processes // num_processes)
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
        threads_per_process=_threads(config, machine, "policy"),
        main_address=parallel.main_address,
        main_port=parallel.main_port,
        interface=parallel.interface,
        **group_settings(config, strategy, why, device),
    )


def _reward_group(config: RunConfig, reward: RewardSource, machine: Machine, policy: GroupPlan) -> GroupPlan:
    """Plans the reward group on the first node, beside the policy's processes there, or on a node after the
    policy's."""
    parallel = reward.parallel
    device = device_of(parallel, machine)
    comes_after = device == policy.device == "cuda" and not reward.own_nodes
    settings = inference_settings(parallel, reward.mixed_precision)
    return GroupPlan(
        name=config.reward_groups[0].group,
        serves=True,
        max_restarts=reward.max_restarts,
        timeout_seconds=parallel.timeout_seconds,
        heartbeat_timeout_seconds=parallel.heartbeat_timeout_seconds,
        first_device=policy.num_processes // policy.num_nodes if comes_after else 0,
        num_processes=parallel.num_processes,
        num_nodes=1,
        first_node=policy.num_nodes if reward.own_nodes else 0,
        device=device,
        backend="gloo" if device == "cpu" else "nccl",
        mixed_precision=reward.mixed_precision,
        threads_per_process=_threads(config, machine, REWARD),
        main_address=None,
        main_port=parallel.main_port,
        interface=parallel.interface or policy.interface,
        **_serving_settings(parallel.strategy, parallel.num_processes, device, settings),
    )


def _threads(config: RunConfig, machine: Machine, group: str) -> int:
    """Returns the threads of each of a group's processes: the cores of a node divided by the processes of all groups
    there."""
    counts = {"policy": config.parallel.num_processes // config.parallel.num_nodes}
    if (reward := config.reward_group) is not None:
        counts[REWARD] = reward.parallel.num_processes
        if reward.own_nodes:
            counts = {group: counts[group]}
    return max(1, machine.num_cores // max(1, sum(counts.values())))


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
