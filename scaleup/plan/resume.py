"""Whether a config may go on with what a run folder holds, also on another number of processes."""

from __future__ import annotations

from scaleup.artifacts.run_folder import RunFolder
from scaleup.config.schema import RunConfig
from scaleup.plan.types import BatchPlan, Plan

SPLIT_KEYS = frozenset(
    {
        "parallel.num_processes",
        "parallel.num_nodes",
        "train.per_device_train_batch_size",
        "train.gradient_accumulation_steps",
        "train.global_batch_size",
    }
)
"""How a step's rows are split. They may change between attempts if a step holds the same rows before and after."""


def state_of(run: RunFolder, config: RunConfig, batch: BatchPlan | None) -> str:
    """`absent`, `finished` or `unfinished`, as RunFolder.state. Raises ScaleupError when it holds another run."""
    return run.state(config, SPLIT_KEYS if _may_split_anew(run, config, batch) else frozenset())


def _may_split_anew(run: RunFolder, config: RunConfig, batch: BatchPlan | None) -> bool:
    """Replicated and FSDP2 checkpoints load on any number of processes; DeepSpeed's on the number that wrote them."""
    if batch is None or config.parallel.strategy.startswith("zero"):
        return False
    try:
        before = Plan.read(run.plan_file).batch
    except (OSError, ValueError):
        return False
    return before is not None and (before.unit, before.global_batch) == (batch.unit, batch.global_batch)
