"""A config and its cluster section go in; what the job is granted on each node, the machine that this makes to plan
for, and what cannot work come out."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from scaleup.artifacts.run_folder import RunFolder
from scaleup.config.cluster import ClusterConfig, NodeResources
from scaleup.config.generator import GENERATOR
from scaleup.config.reward_source import RewardSource
from scaleup.config.run import RunConfig
from scaleup.config.schema import ParallelConfig
from scaleup.config.stages.base import TrainingConfig
from scaleup.errors import Problem
from scaleup.plan.machine import CORES_A_GPU, Machine

BYTES = {"M": 2**20, "G": 2**30, "T": 2**40}
ENOUGH_LINES = 20
"""Counts lines of metrics, from the end, that tell how long steps take now."""


@dataclass(frozen=True)
class Granted:
    """Holds what a job requests on a node."""

    gpus: int
    cpus: int | None
    memory: str | None


def nodes_of(config: RunConfig) -> int:
    """Returns how many nodes a run needs, including that of reward groups alone."""
    return config.parallel.num_nodes + has_reward_node(config)


def granted(config: RunConfig, cluster: ClusterConfig) -> Granted:
    """Returns what is granted on each of the policy's nodes, and on all nodes where they are alike."""
    return _granted(cluster, sum(_used_gpus(config, cluster).values()))


def granted_to_reward(config: RunConfig, cluster: ClusterConfig) -> Granted | None:
    """Returns what is granted on the reward groups' own node, where that is of another kind."""
    if cluster.reward is None or not config.reward_groups:
        return None
    return _granted(cluster.reward, sum(_used_on_own(config, cluster.reward.gpus_per_node).values()))


def with_reward_device(config: RunConfig, cluster: ClusterConfig) -> RunConfig:
    """Replaces `device: auto` of reward groups whose node is of another kind by what that node has: the run is planned
    on the first node, which cannot see it."""
    node = granted_to_reward(config, cluster)
    if node is None:
        return config
    device = "cuda" if node.gpus else "cpu"
    sources = [reward.source for reward in config.reward_sources]
    return config.with_reward_sources([_settled(each, device) if _is_on_own(each) else each for each in sources])


def _settled(source: RewardSource, device: str) -> RewardSource:
    if source.parallel.device != "auto":
        return source
    return source.model_copy(update={"parallel": source.parallel.model_copy(update={"device": device})})


def _is_on_own(source: RewardSource) -> bool:
    return source.placement == "group" and source.own_nodes


def cluster_machine(config: RunConfig, cluster: ClusterConfig) -> Machine:
    """Returns one node of the job, to plan for wherever the job is submitted from."""
    node = granted(config, cluster)
    used = sum(_used_gpus(config, cluster).values())
    return Machine(
        num_cores=node.cpus or CORES_A_GPU * max(1, node.gpus),
        num_gpus=max(node.gpus, used),  # where they differ, a rule of ours says so
        memory=None if node.memory is None else _bytes(node.memory),
        gpu_memory=None if cluster.gpu_memory is None else _bytes(cluster.gpu_memory),
        is_described=True,
    )


def cluster_problems(config: RunConfig, cluster: ClusterConfig) -> list[Problem]:
    return [*_nodes(config, cluster), *_gpu_counts(config, cluster), *_time(config, cluster)]


def _granted(resources: NodeResources, used: int) -> Granted:
    gpus = used if resources.gpus_per_node is None else resources.gpus_per_node
    return Granted(gpus, resources.cpus_per_node, resources.memory)


def has_reward_node(config: RunConfig) -> bool:
    return any(_is_on_own(reward.source) for reward in config.reward_groups)


def _gpus(parallel: ParallelConfig, on_a_node: int | None) -> int:
    """Returns how many of a node's GPUs a group's processes use; `device: auto` uses them where there are some."""
    uses = parallel.device == "cuda" or (parallel.device == "auto" and bool(on_a_node))
    return parallel.num_processes // parallel.num_nodes if uses else 0


def _used_gpus(config: RunConfig, cluster: ClusterConfig) -> dict[str, int]:
    """Returns the GPUs that each group uses on the node with most: the first, where reward groups may be too."""
    beside = [reward for reward in config.reward_groups if not reward.source.own_nodes]
    used = {reward.group: _gpus(reward.source.parallel, cluster.gpus_per_node) for reward in beside}
    if (generator := config.generator_group) is not None:
        used[GENERATOR] = _gpus(generator.parallel, cluster.gpus_per_node)
    return {"policy": _gpus(config.parallel, cluster.gpus_per_node), **used}


def _used_on_own(config: RunConfig, on_a_node: int | None) -> dict[str, int]:
    """Returns the GPUs that each reward group uses of the node that they have for themselves, by the group's key."""
    own = [reward for reward in config.reward_groups if reward.source.own_nodes]
    return {reward.key: _gpus(reward.source.parallel, on_a_node) for reward in own}


def _nodes(config: RunConfig, cluster: ClusterConfig) -> Iterator[Problem]:
    needed = nodes_of(config)
    if cluster.nodes is not None and cluster.nodes != needed:
        of_reward = ", and one for reward groups" if has_reward_node(config) else ""
        what = f"{cluster.nodes} granted, and the run needs {needed} (parallel.num_nodes{of_reward})"
        yield Problem("cluster.nodes", what, f"use {needed}, or another parallel.num_nodes")
    if cluster.reward is not None and not has_reward_node(config):
        what = "only applies to runs whose reward group has a node of its own"
        yield Problem("cluster.reward", what, "set own_nodes: true of a reward, or leave it out")


def _gpu_counts(config: RunConfig, cluster: ClusterConfig) -> Iterator[Problem]:
    node, used = granted(config, cluster), _used_gpus(config, cluster)
    if node.gpus != sum(used.values()):
        groups = ", ".join(f"{group} {count}" for group, count in used.items())
        what = f"{node.gpus} GPUs do not divide into the processes of a node, which use {sum(used.values())} ({groups})"
        remedy = f"use {sum(used.values())}, or other numbers of processes"
        yield Problem("cluster.gpus_per_node", what, remedy)
    if not has_reward_node(config):
        return
    own = granted_to_reward(config, cluster)
    used = _used_on_own(config, cluster.gpus_per_node if own is None else own.gpus)
    count = sum(used.values())
    if own is None and count > node.gpus:
        what = f"the reward groups' node has {node.gpus} GPUs, and they use {count}"
        yield Problem(f"{next(iter(used))}.parallel.num_processes", what, "use fewer, or give cluster.reward")
    if own is not None and own.gpus != count:
        what = f"{own.gpus} GPUs do not divide into the reward groups' processes, which use {count}"
        yield Problem("cluster.reward.gpus_per_node", what, f"use {count}, or other numbers of processes")


def _time(config: RunConfig, cluster: ClusterConfig) -> Iterator[Problem]:
    limit = cluster.time_seconds
    if limit is None:
        return
    if limit <= cluster.signal_seconds:
        what = f"{_words(limit)} is over before cluster.signal_seconds, {_words(cluster.signal_seconds)}, begin"
        yield Problem("cluster.time", what, "allow more time, or less to save in")
        return
    for key, interval in _save_intervals(config):
        if limit <= interval + cluster.signal_seconds:
            what = (
                f"{_words(limit)} leaves no time for a checkpoint: {key}, and {_words(cluster.signal_seconds)} to end"
            )
            yield Problem("cluster.time", what, "allow more time, or save more often")


def _save_intervals(config: RunConfig) -> Iterator[tuple[str, float]]:
    """Yields each setting that says how often a run saves, and the seconds between saves."""
    if not isinstance(config, TrainingConfig):
        return
    if (minutes := config.train.save_minutes) is not None:
        yield f"train.save_minutes is {minutes:g}", 60 * minutes
    if config.train.save_steps is not None:
        run = RunFolder(Path(config.runs_dir) / config.name)
        if (seconds := seconds_a_step(run.metrics_file)) is not None:
            steps = config.train.save_steps
            yield f"train.save_steps is {steps}, at {seconds:.3g} s a step so far", steps * seconds


def seconds_a_step(metrics: Path) -> float | None:
    """Returns the seconds that a step of an earlier attempt took (for PPO, a rollout), by its newest lines of metrics;
    None if they do not say."""
    rows = []
    with suppress(OSError, ValueError):
        lines = metrics.read_text(encoding="utf-8").splitlines(keepends=True)
        rows = [json.loads(line) for line in lines[-ENOUGH_LINES:] if line.endswith("\n")]
    if rollouts := [row["time/rollout"] for row in rows if "time/rollout" in row]:
        return sum(rollouts) / len(rollouts)
    rows = [row for row in rows if row.get("tokens_per_second") and "num_tokens" in row]
    steps = [(row["step"], row["num_tokens"], row["tokens_per_second"]) for row in rows]
    pairs = [(one, other) for one, other in itertools.pairwise(steps) if other[0] > one[0]]
    if not pairs:
        return None
    seconds = sum((other[1] - one[1]) / other[2] for one, other in pairs)
    return seconds / sum(other[0] - one[0] for one, other in pairs)


def _bytes(memory: str) -> int:
    return int(memory[:-1]) * BYTES[memory[-1]]


def _words(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.3g} min"
