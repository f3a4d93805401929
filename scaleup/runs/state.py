"""A run folder goes in; what is known of the run comes out: whether it runs and where, how far it is, how it ended.

All is read from files that a run writes anyway, and from the kernel's list of locks: a run that goes on is left alone.
On this host a lock tells whether one does; on another its agent's notice, for as long as that is news."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

from scaleup.artifacts.lineage import Parent
from scaleup.artifacts.local_folder import LocalFolder
from scaleup.artifacts.manifest import Manifest
from scaleup.artifacts.metrics_log import last_metrics
from scaleup.artifacts.noticeboard import UNREADABLE, NoticeBoard
from scaleup.artifacts.run_folder import Attempt, RunFolder
from scaleup.artifacts.run_lock import LOCKS, Holders, holder_of
from scaleup.errors import ScaleupError
from scaleup.launcher.peers import BEAT_SECONDS, NodeNotice, notice_of
from scaleup.launcher.processes import processes_of
from scaleup.launcher.ranks import WorkerState
from scaleup.plan.types import Plan

State = Literal["running", "finished", "stopped", "failed", "unfinished"]
"""Says how a run is: `stopped` by a signal, and can go on; `failed` with an error; `unfinished`: killed, or prepared
and never started."""
STATES: tuple[State, ...] = get_args(State)
NEWS_SECONDS = 6 * BEAT_SECONDS
"""Is how old the notice of another host's agent may be, by clocks that differ a little, before it counts as killed."""


@dataclass(frozen=True)
class Place:
    """Tells where a run goes on."""

    host: str
    pid: int | None
    """Is the process that leads it; None on another host."""
    node_rank: int = 0


@dataclass(frozen=True)
class RunState:
    """Holds what is known of a run; None and empty where it has not said so."""

    run: RunFolder
    stage: str
    state: State
    place: Place | None
    """Is where it goes on, if it does."""
    plan: Plan | None
    manifest: Manifest | None
    attempt: Attempt | None
    notice: NodeNotice | None
    """Is what the first node's agent last said of the newest attempt."""
    ranks: Mapping[str, WorkerState]
    """Holds the workers of a running run that have said how far they are, by their names."""
    metrics: Mapping[str, Any]
    """Holds the value that each figure had when it was last logged."""
    step: int | None
    """Counts the steps that are done."""
    num_steps: int | None

    @property
    def eta_seconds(self) -> float | None:
        """Return how long the steps that are left take at the pace of those that this start of the run has done."""
        leader = next(iter(self._in_steps()), None)
        if leader is None or self.num_steps is None or self.step is None or leader.steps < 2:
            return None
        return leader.step_seconds / (leader.steps - 1) * max(0, self.num_steps - self.step)

    def _in_steps(self) -> Iterator[WorkerState]:
        return (state for name, state in sorted(self.ranks.items()) if state.step is not None)

    @property
    def phase(self) -> str:
        """Return what a running run's first rank does now."""
        if self.state != "running":
            return ""
        first = next(iter(self.ranks.values()), None)
        return first.phase if first is not None else "starting"


def read_state(path: Path, holders: Holders | None = None) -> RunState:
    """Return the state of the run in a folder. `holders`: what `lock_holders` has returned, for many runs.

    Raises ScaleupError if there is no run."""
    run = run_at(path)
    place = place_of(run, holders)
    attempt, manifest, plan = run.newest_attempt(), _manifest(run), read_plan(run)
    notice = notice_of(attempt, 0) if attempt else None
    ranks = _ranks(run, attempt, plan, place)
    metrics = last_metrics(run.metrics_file)
    step, num_steps = _steps(plan, manifest, ranks, metrics.get("step"))
    return RunState(
        run=run,
        stage=plan.stage if plan else manifest.stage if manifest else _stage(run),
        state=_state(run, place, notice),
        place=place,
        plan=plan,
        manifest=manifest,
        attempt=attempt,
        notice=notice,
        ranks=ranks,
        metrics=metrics,
        step=step,
        num_steps=num_steps,
    )


def run_at(path: Path) -> RunFolder:
    """Return the run in a folder. Raises ScaleupError if there is none."""
    run = RunFolder(path.absolute())
    if not is_run_folder(run.path):
        raise ScaleupError.of(str(path), "is no run folder", "name the folder of a run: `scaleup runs` lists them")
    return run


def is_run_folder(folder: Path) -> bool:
    """Return whether a run was prepared in a folder."""
    run = RunFolder(folder)
    return run.config_file.is_file() and run.plan_file.is_file() and (folder / "launch").is_dir()


def place_of(run: RunFolder, holders: Holders | None = None) -> Place | None:
    """Return where a run goes on, if it does: a process of this host has its lock, or another host's agent has just
    spoken."""
    here = socket.gethostname()
    if (holder := holder_of(run, holders)) is not None:
        return Place(here, holder.pid, holder.node_rank)
    attempt = run.newest_attempt()
    notice = notice_of(attempt, 0) if attempt else None
    if attempt is None or notice is None or notice.state == "over":
        return None
    with suppress(OSError):
        told = attempt.node_file(0).stat()
        is_ours_to_see = notice.host == here and told.st_uid == os.getuid() and LOCKS.exists()  # then it had its lock
        if not is_ours_to_see and abs(time.time() - told.st_mtime) < NEWS_SECONDS:
            return Place(notice.host, None)
    return None


def _state(run: RunFolder, place: Place | None, notice: NodeNotice | None) -> State:
    if run.manifest_file.is_file():
        return "finished"
    if place is not None:
        return "running"
    kind = notice.ending.kind if notice and notice.ending else ""
    if run.resumable_file.is_file() or kind == "stopped":
        return "stopped"
    return "failed" if kind in ("failed", "refused") else "unfinished"


def _manifest(run: RunFolder) -> Manifest | None:
    with suppress(*UNREADABLE):
        return run.manifest()
    return None


def read_plan(run: RunFolder) -> Plan | None:
    """Return a run's plan; None before there is one, and for that of a version that nobody knows any more."""
    with suppress(OSError, ScaleupError):
        return Plan.read(run.plan_file)
    return None


def _stage(run: RunFolder) -> str:
    with suppress(ScaleupError):
        return run.config.stage
    return "?"


def _ranks(run: RunFolder, attempt: Attempt | None, plan: Plan | None, place: Place | None) -> dict[str, WorkerState]:
    """Returns what a running run's workers last said, in the order of the plan's groups: those of this host to the
    second, those of others with their agent's last notice."""
    if attempt is None or place is None:
        return {}
    notices = (notice_of(attempt, int(file.stem)) for file in attempt.nodes.glob("[0-9]*.json"))
    ranks = {
        name: rank for notice in notices if notice and notice.state == "running" for name, rank in notice.ranks.items()
    }
    if place.pid is not None:
        for local in {process.local for process in processes_of(run.path) if process.attempt == attempt.number}:
            if local is not None:
                ranks |= _local_ranks(LocalFolder(local), place.host)
    groups = [group.name for group in plan.groups] if plan else []

    def order(name: str) -> tuple[int, str, int]:
        group, _, rank = name.rpartition("-rank")
        return groups.index(group) if group in groups else len(groups), group, int(rank)

    return {name: ranks[name] for name in sorted(ranks, key=order)}


def _local_ranks(local: LocalFolder, host: str) -> dict[str, WorkerState]:
    board = NoticeBoard(local.heartbeats)
    found = {name: board.read(name, partial(WorkerState.parse, name, host)) for name in local.ranks("*")}
    return {name: state for name, state in found.items() if state is not None}


def _steps(
    plan: Plan | None, manifest: Manifest | None, ranks: Mapping[str, WorkerState], logged: int | None
) -> tuple[int | None, int | None]:
    """Returns how many steps are done, and how many there are: as workers, the log, the manifest and the plan say."""
    in_steps = [state for state in ranks.values() if state.step is not None]
    done = [state.step - 1 for state in in_steps if state.step is not None] + ([] if logged is None else [logged])
    step = manifest.num_steps if manifest else max(done, default=None)
    planned = None
    if plan is not None:
        planned = plan.rollouts.num_rollouts if plan.rollouts else plan.batch.num_steps if plan.batch else None
    told = next((state.num_steps for state in in_steps if state.num_steps is not None), None)
    return step, told or planned


def parents_of(run: RunFolder, plan: Plan | None) -> list[Path]:
    """Return the folders of the runs whose models or rows a run was made from, each once: those of its lineage, and
    those in which the models of its plan lie, e.g. an adapter's base."""
    facts = plan.facts.values() if plan else ()
    places = [place for fact in facts for place in (fact.location, fact.adapter, fact.tokenizer_location) if place]
    found = [Path(parent.run).resolve() for parent in _recorded(run)] + [_run_of(Path(place)) for place in places]
    return list(dict.fromkeys(folder for folder in found if folder is not None and folder != run.path.resolve()))


def _recorded(run: RunFolder) -> Iterable[Parent]:
    with suppress(*UNREADABLE):
        lineage = run.lineage()
        return lineage.parents.values() if lineage else ()
    return ()


def _run_of(place: Path) -> Path | None:
    """Returns the run folder that a model's folder lies in."""
    if not place.is_absolute():
        return None
    resolved = place.resolve()
    return next((folder for folder in (resolved, *resolved.parents) if is_run_folder(folder)), None)
