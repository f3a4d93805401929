"""A pipeline goes in; what there is to do for each of its runs comes out, and why. What is known of a run lies in its
folder alone: config, data, lineage and manifest."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

import scaleup
from scaleup.artifacts.run_folder import RunFolder, differing_keys, is_among
from scaleup.config.run import RunConfig
from scaleup.errors import Problem, ScaleupError
from scaleup.plan.lineage import config_hash
from scaleup.plan.resolve import checked_rows
from scaleup.plan.resume import SPLIT_KEYS, STRATEGY_KEYS, may_change, rows_of, state_of
from scaleup.plan.stages import planner_of
from scaleup.studies.pipeline import Pipeline, PipelineRun, of_run

Action = Literal["skip", "resume", "run", "again"]
MEASURING = {"evaluation", "generation"}
"""Names sections that may change when training goes on, and are what other stages do."""
NUM_KEYS_SHOWN = 3


@dataclass(frozen=True)
class Step:
    """Says what there is to do for a run: nothing, go on, start, or start with what there was moved aside."""

    action: Action
    why: str

    @property
    def is_done(self) -> bool:
        return self.action == "skip"


def steps_of(pipeline: Pipeline, chosen: Collection[str]) -> dict[str, Step]:
    """Returns what there is to do for each run; those that are not `chosen` count as they are.

    Raises ScaleupError with every folder that holds no run, or one that cannot be read."""
    steps: dict[str, Step] = {}
    problems: list[Problem] = []
    for run in pipeline.runs.values():
        pending = [name for name in run.parents if name in chosen and not steps[name].is_done]
        try:
            steps[run.name] = step_of(run, pending)
        except ScaleupError as error:
            problems += of_run(run.name, error.problems)
            steps[run.name] = Step("run", "")
    if problems:
        raise ScaleupError(problems)
    return steps


def step_of(run: PipelineRun, pending: Collection[str] = ()) -> Step:
    """Returns what there is to do for a run; `pending` are those of its inputs that are yet to be made.

    Raises ScaleupError if its folder holds something else than a run."""
    folder = run.folder
    if not folder.config_file.is_file():
        if folder.path.exists() and (not folder.path.is_dir() or any(folder.path.iterdir())):
            where = f"runs_dir/name ({folder.path})"
            raise ScaleupError.of(where, "exists and is no run folder", "choose another name")
        return Step("run", f"after {', '.join(pending)}" if pending else "not there yet")
    if pending:
        return Step("again", f"{', '.join(pending)} {'is' if len(pending) == 1 else 'are'} made before it")
    if change := change_of(folder, run.config):
        return Step("again", change)
    if folder.manifest_file.is_file():
        return Step("skip", "finished and unchanged")
    return Step("resume", "not finished")


def change_of(folder: RunFolder, config: RunConfig) -> str | None:
    """Returns why what a folder holds is not what the config would make now; None if it is, or would be once it has
    gone on. Raises ScaleupError if the folder's config cannot be read."""
    lineage = folder.lineage()
    is_same = lineage is not None and lineage.config == config_hash(config)  # then no YAML is read again
    if keys := [] if is_same else _changed_keys(folder, config):
        more = f" and {len(keys) - NUM_KEYS_SHOWN} more" if len(keys) > NUM_KEYS_SHOWN else ""
        return f"{', '.join(keys[:NUM_KEYS_SHOWN])}{more} changed"
    if lineage is not None:
        if lineage.code.version != scaleup.__version__:
            return f"scaleup {lineage.code.version} made it, and this is {scaleup.__version__}"
        for key, parent in lineage.parents.items():
            if parent.is_stale:
                return f"{key}: {parent.run} was made again since"
    try:
        rows_of(folder, config, "unfinished", False, lambda line: None)
    except ScaleupError as error:
        return f"{error.problems[0].where}: {error.problems[0].what}"
    return None


def _changed_keys(folder: RunFolder, config: RunConfig) -> list[str]:
    """Returns the keys that make a config another run's. How steps are split is none if they are as large."""
    changed = folder.moved_keys(config, may_change(folder, config, None))
    if changed and all(is_among(key, SPLIT_KEYS | STRATEGY_KEYS) for key in changed):
        data = checked_rows(config)
        try:
            state_of(folder, config, None if data.problems else planner_of(config).batch(config, data))
            changed = []
        except ScaleupError:
            pass  # their sizes differ
    if planner_of(config).trains:
        return changed
    before, now = (each.model_dump(mode="json", include=MEASURING) for each in (folder.config, config))
    return changed + differing_keys(before, now)
