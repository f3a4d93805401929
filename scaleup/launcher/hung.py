"""This module finds workers that are alive and do not go on: by their heartbeats, on a notice board in the attempt's
folder.

Two kinds. *Frozen*: the process shows no beat (SIGSTOP, a device or a file system that does not answer). *Standing
still*: it beats, and its main thread gets no further; then all ranks of its group stand still, and those that have
entered fewest collectives are the ones that the others wait for.

Time is counted in looks of our own, each of which begins with a notice that we post as workers post theirs: where a
file system hangs or a disk is full, nobody is judged."""

from __future__ import annotations

import signal
import socket
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from scaleup.artifacts.noticeboard import NoticeBoard, Silence
from scaleup.artifacts.run_folder import Attempt
from scaleup.launcher.processes import RunProcess, signal_all
from scaleup.plan.types import GroupPlan, Plan

LOOK_SECONDS = 2.0
STACK_SECONDS = 1.0
"""Counts the seconds that workers that hang may take to print their stacks."""


@dataclass(frozen=True)
class WorkerState:
    """Holds what a worker's last heartbeat says."""

    name: str
    """Is its group's name and its rank: `policy-rank1`."""
    host: str
    node: int
    pid: int
    beat: int
    phase: str
    step: int | None
    steps: int
    position: tuple[int, ...]
    """Counts the collectives entered, and what was begun since: the smaller, the further behind."""

    @classmethod
    def parse(cls, name: str, value: Any) -> WorkerState:
        return cls(**{**value, "name": name, "position": tuple(value["position"])})

    @property
    def place(self) -> str:
        return f"in phase {self.phase}" + (f" of step {self.step}" if self.step else "")


def frozen_sentence(state: WorkerState, seconds: float) -> str:
    """Return the sentence for a worker whose beat has not moved for so long."""
    return f"{state.name} on host {state.host} hangs: no sign of life for {seconds:g} s, last seen {state.place}"


def no_progress_sentence(group: GroupPlan, states: Iterable[WorkerState], seconds: float) -> str:
    """Return the sentence for a group that stands still: whom the others wait for, as far as their positions tell."""
    ranks = sorted(states, key=lambda state: int(state.name.rpartition("rank")[2]))
    last = min(state.position for state in ranks)
    behind = [state for state in ranks if state.position == last]
    first, how = behind[0], f"no progress for {seconds:g} s"
    if len(behind) == len(ranks) > 1:
        return f"group {group.name} hangs: {how} on any of its ranks, {first.place}"
    others = [f"{state.name} on host {state.host}" for state in behind[1:4]] + ["others"] * (len(behind) > 4)
    who = " and ".join([f"{first.name} on host {first.host}", *others])
    waits = ", and the others wait for it" if len(ranks) > 1 and len(behind) == 1 else ""
    return f"{who} {'hang' if others else 'hangs'}: {how}, {first.place}{waits}"


def is_in_its_steps(states: Iterable[WorkerState]) -> bool:
    """Return whether a group has taken a step in this attempt, and has more to take. What comes before and after
    (reading, loading, compiling, writing the result) is not watched."""
    states = list(states)
    return all(state.step is not None for state in states) and any(state.steps > 1 for state in states)


@dataclass
class HungWorkers:
    """Watches the workers of an attempt for one node's agent: the beats of its own workers, and on the first node also
    the progress of a group that leads."""

    attempt: Attempt
    plan: Plan
    node_rank: int
    alive: Callable[[], list[RunProcess]]
    """Holds this node's processes of the attempt, now."""
    sentence: str = ""
    """Says which worker of a group that leads hangs, and how; empty as long as none does."""
    _beats: Silence = field(default_factory=Silence)
    _positions: dict[str, Silence] = field(default_factory=dict)
    _states: dict[str, list[WorkerState]] = field(default_factory=dict)
    _far_states: dict[str, dict[int, WorkerState]] = field(default_factory=dict)
    """Holds the last state of each rank that could be read: of many on a network file system, some cannot be now and
    then."""
    _next_look: float = 0.0
    _next_far_look: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._board = NoticeBoard(self.attempt.heartbeats, is_durable=False)

    def look(self) -> str:
        """Look every `LOOK_SECONDS`. Return `sentence` the first time that there is one, after the workers have printed
        their stacks."""
        if self.sentence or time.monotonic() < self._next_look:
            return ""
        self._next_look = time.monotonic() + LOOK_SECONDS
        if not self._can_post():
            return ""
        for group in self.plan.groups:
            self._states[group.name] = self._own_states(group)
        self._beats.note({(s.name, s.pid): s.beat for states in self._states.values() for s in states})
        for group in self.plan.groups:
            if not group.serves and not self.sentence:
                self.sentence = self.frozen_in(group.name) or self._no_progress_in(group)
                if self.sentence:
                    self._request_stacks(group.name)
        return self.sentence

    def frozen_in(self, name: str) -> str:
        """Return the sentence for a frozen worker of this node's part of a group, or nothing."""
        timeout = self.plan.group(name).heartbeat_timeout_seconds
        silent = [s for s in self._states.get(name, []) if self._beats.looks((s.name, s.pid)) * LOOK_SECONDS >= timeout]
        here = {process.pid for process in self.alive()} if silent else set()
        silent = [state for state in silent if state.pid in here]  # one that is gone is its launcher's to tell
        return frozen_sentence(silent[0], timeout) if silent else ""

    def _no_progress_in(self, group: GroupPlan) -> str:
        timeout, name = group.progress_timeout_seconds, group.name
        if self.node_rank or time.monotonic() < self._next_far_look.get(name, 0.0):
            return ""
        every = max(LOOK_SECONDS, timeout / 50)  # all ranks of all nodes are looked at
        self._next_far_look[name] = time.monotonic() + every
        known = self._far_states.setdefault(name, {})
        known |= {rank: state for rank in range(group.num_processes) if (state := self._state(name, rank))}
        states = [known[rank] for rank in sorted(known)]
        positions = self._positions.setdefault(name, Silence())
        positions.note({state.name: (state.pid, state.position, state.step) for state in states})
        if len(states) < group.num_processes or not is_in_its_steps(states):
            self._positions.pop(name)
            return ""
        stands = all(positions.looks(state.name) * every >= timeout for state in states)
        return no_progress_sentence(group, states, timeout) if stands else ""

    def _own_states(self, group: GroupPlan) -> list[WorkerState]:
        """Return the states of this node's workers of a group. A group that serves may have another size than planned,
        and is small."""
        count = group.num_processes // group.num_nodes
        ranks = range((self.node_rank - group.first_node) * count, (self.node_rank - group.first_node + 1) * count)
        if group.serves:
            ranks = range(len(list(self.attempt.heartbeats.glob(f"{group.name}-rank*.json"))))
        states = [self._state(group.name, rank) for rank in ranks]
        own = (self.node_rank, socket.gethostname())
        return [state for state in states if state and (state.node, state.host) == own]

    def _state(self, group: str, rank: int) -> WorkerState | None:
        name = f"{group}-rank{rank}"
        return self._board.read(name, partial(WorkerState.parse, name))

    def _can_post(self) -> bool:
        """Tell whether files can be written now, as a worker writes its heartbeat."""
        try:
            self._board.post(f".node{self.node_rank}", {"time": time.time()})
        except OSError:
            return False
        return True

    def _request_stacks(self, group: str) -> None:
        """Make a group's workers print the stacks of all their threads into their logs. A frozen one does not."""
        known = {state.pid for state in self._states[group]}
        workers = [process for process in self.alive() if process.pid in known]
        signal_all(workers, signal.SIGUSR2)
        time.sleep(STACK_SECONDS)
