"""This module checks that a config may resume what a run folder holds, also on other processes, under another strategy
and in another place, and that its rows and models are those that the run began with."""

from __future__ import annotations

from collections.abc import Mapping

from scaleup.artifacts.data_file import RunData, Say, source_marks
from scaleup.artifacts.run_folder import RunFolder, differing_keys
from scaleup.config.data import SourceConfig
from scaleup.config.run import RunConfig
from scaleup.errors import Problem, ScaleupError
from scaleup.plan.places import Marks, change_of, marks_of, place_marks, value_at
from scaleup.plan.stages import planner_of
from scaleup.plan.types import BatchPlan, Plan
from scaleup.records.chat_templates import KEY
from scaleup.records.format_rules import SPLITS

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
    state, before = run.state(config, may_change(run, config, batch)), _batch_of(run)
    if config.plans_its_batch or batch is None or before is None:
        return state
    if (before.unit, before.global_batch) != (batch.unit, batch.global_batch):
        what = f"a step of {run.path} is {before.global_batch} {before.unit}, and would be {batch.global_batch}"
        remedy = f"choose sizes that give {before.global_batch}, or another name"
        raise ScaleupError.of("train.global_batch_size", what, remedy)
    return state


def may_change(run: RunFolder, config: RunConfig, batch: BatchPlan | None) -> frozenset[str]:
    """Returns the keys in which a config may differ from the run's, besides those that any run may change: how its
    steps are split if that can be compared, and places that hold the same."""
    places = _moved(run, config) | _unread(run, config)
    can_split = config.plans_its_batch or (batch is not None and _batch_of(run) is not None)
    return places | (SPLIT_KEYS | STRATEGY_KEYS if can_split else frozenset())


def rows_of(run: RunFolder, config: RunConfig, state: str, accepts: bool, say: Say) -> tuple[RunData, list[str]]:
    """Returns what the run's rows are known by from now on, and what the user should read about it; `say` tells what
    takes a while.

    Raises ScaleupError with every source whose rows are not those that the run began with, and every model, function or
    chat template that is not, unless the user `accepts` them."""
    now, places = source_marks(config.data, planner_of(config).splits(config), say), place_marks(config)
    before = None if state == "absent" else RunData.read(run.data_file)
    if before is None:
        unknown = "this run began with a version that did not keep what its rows are known by: they may have changed"
        return RunData(sources=now, places=places), ([unknown] if now and state != "absent" else [])
    both = [(key, before.sources[key], mark) for key, mark in now.items() if key in before.sources]
    rows = {
        f"{key}.path": f"'{new.path}' has changed since the run began: {how}"
        for key, old, new in both
        if (how := old.change(new))
    }
    changes = rows | _replaced(config, before, places)
    if changes and not accepts:
        raise ScaleupError([Problem(key, what, _remedy(key, key in rows)) for key, what in changes.items()])
    unseen = {key: old for key, old, new in both if old.revision and new.is_hub and not new.revision}
    notes = [
        f"{key}.path: the revision of {old.path} cannot be seen now: its rows may have changed"
        for key, old in unseen.items()
    ]
    told = [f"{key}: {what}" for key, what in changes.items()]
    notes += [*told, OTHER_ROWS if rows else OTHER_TRAJECTORY] if told else []
    accepted = (*before.accepted, *told)
    return RunData(sources={**before.sources, **now, **unseen}, places=places, accepted=accepted), notes


OTHER_TRAJECTORY = (
    "what has changed was accepted: the trajectory is another one from here on: do not compare losses with those before"
)
OTHER_ROWS = (
    "changed rows were accepted: the trajectory is another one from here on, and so are the rows that are held out, "
    "some of which may have been trained on: do not compare losses with those before"
)


def _replaced(config: RunConfig, before: RunData, places: Mapping[str, Marks]) -> dict[str, str]:
    """Returns the keys of models, functions and a chat template that hold something else than when the run began, with
    what."""
    changed = {key: how for key, old in before.places.items() if (how := change_of(old, places.get(key)))}
    changed |= {KEY: "rows would read otherwise"} if KEY in changed else {}
    return {key: f"'{value_at(config, key)}' has changed since the run began: {how}" for key, how in changed.items()}


def _remedy(key: str, is_of_rows: bool) -> str:
    old, these = ("rows", "these") if is_of_rows else ("template", "this one") if key == KEY else ("files", "these")
    return f"put the old {old} back, choose another name, or go on with {these}: --resume --accept-changed-data"


def _unread(run: RunFolder, config: RunConfig) -> frozenset[str]:
    """Returns the keys of the splits that the stage reads neither by the config nor by the run's own: they are for
    what comes after it."""
    try:
        configs = run.config, config
    except ScaleupError:
        return frozenset()  # a file that cannot be read: whoever reads it next says so
    read = {split for each in configs for split in planner_of(each).splits(each)}
    return frozenset(f"data.{split}" for split in SPLITS if split not in read)


def _moved(run: RunFolder, config: RunConfig) -> frozenset[str]:
    """Returns the keys of places that may differ from the run's: those of rows, which are compared before anything
    starts, or here where nothing will start; and those of models and the like that hold what the old place held."""
    try:
        known, before = run.config, RunData.read(run.data_file)
        return frozenset() if before is None else _same_elsewhere(known, before, config, run.manifest_file.is_file())
    except ScaleupError:
        return frozenset()  # a file that cannot be read: whoever reads it next says so


def _same_elsewhere(known: RunConfig, before: RunData, config: RunConfig, is_finished: bool) -> frozenset[str]:
    different = set(differing_keys(known.model_dump(mode="json"), config.model_dump(mode="json")))
    splits = planner_of(config).splits(config)
    rows = {"data.root", *(f"data.{split}.{n}.path" for split in splits for n in range(len(_sources(config, split))))}
    if rows & different and is_finished:
        now = source_marks(config.data, splits)
        is_same = all(key in before.sources and before.sources[key].change(mark) is None for key, mark in now.items())
        rows = rows if is_same else set()
    named = {key: value_at(config, key) for key in different & before.places.keys()}
    return frozenset(rows | {key for key, value in named.items() if value and marks_of(value) == before.places[key]})


def _sources(config: RunConfig, split: str) -> list[SourceConfig]:
    return getattr(config.data, split) or []


def _batch_of(run: RunFolder) -> BatchPlan | None:
    """Returns how the batch of the run's newest attempt was split; None where there is none."""
    try:
        return Plan.read(run.plan_file).batch
    except (OSError, ScaleupError):
        return None
