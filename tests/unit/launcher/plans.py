"""Plans to launch, made without a config or a model."""

from __future__ import annotations

from typing import Any

from scaleup.artifacts.local_folder import LocalFolder
from scaleup.artifacts.run_folder import RunFolder
from scaleup.plan.facts import Tensors
from scaleup.plan.types import BatchPlan, GroupPlan, Plan
from tests.fake_facts import facts_of


def group(**changes: Any) -> GroupPlan:
    known: dict[str, Any] = {
        "name": "policy",
        "num_processes": 1,
        "num_nodes": 1,
        "device": "cpu",
        "backend": "gloo",
        "strategy": "single",
        "why": "",
        "distributed_type": "NO",
        "engine": "none",
        "mixed_precision": "no",
        "threads_per_process": 1,
        "main_address": None,
        "main_port": None,
    }
    return GroupPlan(**(known | changes))


def local_of(run: RunFolder, node_rank: int = 0) -> LocalFolder:
    """A node's own folder, empty."""
    local = LocalFolder(run.path.parent / f"node{node_rank}")
    for file in local.heartbeats.glob("*"):
        file.unlink()
    local.heartbeats.mkdir(parents=True, exist_ok=True)
    return local


def plan_of(run: RunFolder, *groups: GroupPlan) -> Plan:
    tensors = (Tensors(shape=(10, 100), count=1),)
    facts = facts_of(num_trainable_parameters=1000, tensors=tensors, largest_block=1000)
    batch = BatchPlan(micro_batch=8, accumulation=1, global_batch=8, num_steps=4, num_train_rows=10)
    return Plan(
        stage="sft",
        name=run.path.name,
        run_folder=str(run.path),
        groups=list(groups) or [group()],
        model=facts,
        batch=batch,
        memory=[],
        notes=[],
    )
