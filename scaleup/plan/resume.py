"""This module checks that a config may resume what a run folder holds, also on other processes and under another
strategy."""

from __future__ import annotations

from scaleup.artifacts.run_folder import RunFolder
from scaleup.config.run import RunConfig
from scaleup.errors import ScaleupError
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
"""These keys say how a step's rows are split. They may change between attempts if a step holds the same rows before and
after."""

STRATEGY_KEYS = frozenset({"parallel.strategy", "parallel.offload_optimizer", "parallel.offload_parameters"})
"""These keys say where weights and optimizer state lie. Checkpoints of any strategy load into any other."""


def state_of(run: RunFolder, config: RunConfig, batch: BatchPlan | None) -> str:
    """Returns `absent`, `finished` or `unfinished`, as RunFolder.state. Raises ScaleupError when it holds another
    run."""
    if config.plans_its_batch:
        return run.state(config, SPLIT_KEYS | STRATEGY_KEYS)
    before = _batch_of(run)
    if batch is None or before is None:
        return run.state(config)
    state = run.state(config, SPLIT_KEYS | STRATEGY_KEYS)
    if (before.unit, before.global_batch) != (batch.unit, batch.global_batch):
        what = f"a step of {run.path} is {before.global_batch} {before.unit}, and would be {batch.global_batch}"
        remedy = f"choose sizes that give {before.global_batch}, or another name"
        raise ScaleupError.of("train.global_batch_size", what, remedy)
    return state


def _batch_of(run: RunFolder) -> BatchPlan | None:
    """Returns how the batch of the run's newest attempt was split; None where there is none."""
    try:
        return Plan.read(run.plan_file).batch
    except (OSError, ValueError):
        return None
