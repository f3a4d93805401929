"""The groups of a run: the one that trains, generates or evaluates, and a reward model's own beside a PPO policy."""

from __future__ import annotations

from typing import Any, Literal

from scaleup.config.schema import ParallelConfig, RunConfig
from scaleup.config.stages import PPOConfig
from scaleup.plan.deepspeed import inference_settings
from scaleup.plan.facts import ModelFacts
from scaleup.plan.machine import Machine
from scaleup.plan.patience import progress_timeout
from scaleup.plan.strategy import group_settings, settle, share_of
from scaleup.plan.types import BridgePlan, GroupPlan

REWARD = "reward"


def device_of(parallel: ParallelConfig, machine: Machine) -> Literal["cpu", "cuda"]:
    if parallel.device == "auto":
        return "cuda" if machine.num_gpus else "cpu"
    return parallel.device


def has_reward_group(config: RunConfig) -> bool:
    return isinstance(config, PPOConfig) and config.reward.placement == "group"


def groups_of(config: RunConfig, machine: Machine, facts: ModelFacts, before: str | None) -> list[GroupPlan]:
    """The group that leads comes first. `facts` are of what is trained in it, `before` its strategy so far.

    Raises ScaleupError as `settle` does."""
    policy = _policy_group(config, machine, facts, before)
    if isinstance(config, PPOConfig) and has_reward_group(config):
        return [policy, _reward_group(config, machine, policy)]
    return [policy]


def bridge_of(config: RunConfig, policy: GroupPlan) -> BridgePlan | None:
    if not isinstance(config, PPOConfig) or not has_reward_group(config):
        return None
    is_on_one_node = policy.num_nodes == 1 and not config.reward.own_nodes
    return BridgePlan(address="127.0.0.1" if is_on_one_node else policy.main_address, port=config.reward.bridge_port)


def resized(group: GroupPlan, num_processes: int) -> GroupPlan:
    """A group that serves, of another size: on the same cores, under the same strategy."""
    threads = max(1, group.threads_per_process * group.num_processes // num_processes)
    settings = _serving_settings(group.strategy, num_processes, group.device, group.deepspeed)
    sizes = {"num_processes": num_processes, "threads_per_process": threads}
    return GroupPlan.model_validate({**group.model_dump(), **settings, **sizes})


def _policy_group(config: RunConfig, machine: Machine, facts: ModelFacts, before: str | None) -> GroupPlan:
    parallel, device = config.parallel, device_of(config.parallel, machine)
    strategy, why = settle(config, facts, share_of(config, machine, device), before)
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


def _reward_group(config: PPOConfig, machine: Machine, policy: GroupPlan) -> GroupPlan:
    """On the first node, beside the policy's processes there, or on one after the policy's."""
    reward, parallel = config.reward, config.reward.parallel
    device = device_of(parallel, machine)
    comes_after = device == policy.device == "cuda" and not reward.own_nodes
    settings = inference_settings(parallel, reward.mixed_precision)
    return GroupPlan(
        name=REWARD,
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
    """Of each of a group's processes: the cores of a node divided by the processes of all groups there."""
    counts = {"policy": config.parallel.num_processes // config.parallel.num_nodes}
    if isinstance(config, PPOConfig) and has_reward_group(config):
        counts[REWARD] = config.reward.parallel.num_processes
        if config.reward.own_nodes:
            counts = {group: counts[group]}
    return max(1, machine.num_cores // max(1, sum(counts.values())))


def _serving_settings(strategy: str, count: int, device: str, deepspeed: dict[str, Any] | None) -> dict[str, Any]:
    """As `group_settings`, of a model that is not trained: it is sharded, or whole on each rank and not wrapped."""
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
