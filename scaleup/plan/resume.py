"""This module checks that a config may resume what a run folder holds, also on other processes, under another strategy
and in another place, and that its rows are those that the run began with."""

from __future__ import annotations

from scaleup.artifacts.data_file import RunData, source_marks
from scaleup.artifacts.run_folder import RunFolder
from scaleup.config.run import RunConfig
from scaleup.errors import Problem, ScaleupError
from scaleup.plan.stages import planner_of
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
    places = _places(run, config)
    if config.plans_its_batch:
        return run.state(config, places | SPLIT_KEYS | STRATEGY_KEYS)
    before = _batch_of(run)
    if batch is None or before is None:
        return run.state(config, places)
    state = run.state(config, places | SPLIT_KEYS | STRATEGY_KEYS)
    if (before.unit, before.global_batch) != (batch.unit, batch.global_batch):
        what = f"a step of {run.path} is {before.global_batch} {before.unit}, and would be {batch.global_batch}"
        remedy = f"choose sizes that give {before.global_batch}, or another name"
        raise ScaleupError.of("train.global_batch_size", what, remedy)
    return state


def rows_of(run: RunFolder, config: RunConfig, state: str, accepts: bool) -> tuple[RunData | None, list[str]]:
    """Returns what the run's rows are known by from now on, None where it reads none, and what the user should read
    about it.

    Raises ScaleupError with every source whose rows are not those that the run began with, unless the user `accepts`
    them."""
    now = source_marks(config.data, planner_of(config).splits(config))
    before = None if state == "absent" else RunData.read(run.data_file)
    if before is None:
        unknown = "this run began with a version that did not keep what its rows are known by: they may have changed"
        return (RunData(sources=now) if now else None), ([unknown] if now and state != "absent" else [])
    both = [(key, before.sources[key], mark) for key, mark in now.items() if key in before.sources]
    changes = {
        key: f"'{new.path}' has changed since the run began: {how}"
        for key, old, new in both
        if (how := old.change(new))
    }
    if changes and not accepts:
        remedy = "put the old rows back, choose another name, or go on with these: --resume --accept-changed-data"
        raise ScaleupError([Problem(f"{key}.path", what, remedy) for key, what in changes.items()])
    unseen = {key: old for key, old, new in both if old.revision and new.is_hub and not new.revision}
    notes = [
        f"{key}.path: the revision of {old.path} cannot be seen now: its rows may have changed"
        for key, old in unseen.items()
    ]
    told = [f"{key}.path: {what}" for key, what in changes.items()]
    notes += [*told, OTHER_TRAJECTORY] if told else []
    return RunData(sources={**before.sources, **now, **unseen}, accepted=(*before.accepted, *told)), notes


OTHER_TRAJECTORY = (
    "changed rows were accepted: the trajectory is another one from here on, and so are the rows that are held out, "
    "some of which may have been trained on: do not compare losses with those before"
)


def _places(run: RunFolder, config: RunConfig) -> frozenset[str]:
    """Returns the keys of where the rows lie, which may change where it is known what they were."""
    if not run.data_file.is_file():
        return frozenset()
    splits = {split: getattr(config.data, split) or [] for split in planner_of(config).splits(config)}
    paths = (f"data.{split}.{place}.path" for split, sources in splits.items() for place in range(len(sources)))
    return frozenset({"data.root", *paths})


def _batch_of(run: RunFolder) -> BatchPlan | None:
    """Returns how the batch of the run's newest attempt was split; None where there is none."""
    try:
        return Plan.read(run.plan_file).batch
    except (OSError, ValueError):
        return None
