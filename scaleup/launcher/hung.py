"""This module finds workers that are alive and do not go on: by their heartbeats, on a notice board of the node's own.

Two kinds. *Frozen*: the process shows no beat (SIGSTOP, a device that does not answer). *Standing still*: it beats, and
its main thread gets no further; then all ranks of its group stand still, and those that have entered fewest collectives
are the ones that the others wait for.

Each agent judges the beats of its own workers, and tells node 0 how far they are and for how long they have stood
there; node 0 judges the group. Time is counted in looks of our own, each of which begins with a notice that we post as
workers post theirs: where that fails, nobody is judged."""

from __future__ import annotations

import signal
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial

from scaleup.artifacts.local_folder import LocalFolder
from scaleup.artifacts.noticeboard import NoticeBoard, Silence
from scaleup.launcher.peers import Nodes
from scaleup.launcher.processes import RunProcess, signal_all
from scaleup.launcher.ranks import WorkerState, frozen_sentence, is_in_its_steps, no_progress_sentence
from scaleup.plan.types import GroupPlan, Plan

LOOK_SECONDS = 2.0
STACK_SECONDS = 1.0
"""Counts the seconds that workers that hang may take to print their stacks."""


@dataclass
class HungWorkers:
    """Watches the workers of an attempt for one node's agent: the beats of its own workers, and on the first node also
    the progress of a group that leads."""

    plan: Plan
    node_rank: int
    local: LocalFolder
    nodes: Nodes
    alive: Callable[[], list[RunProcess]]
    """Holds this node's processes of the attempt, now."""
    sentence: str = ""
    """Says which worker of a group that leads hangs, and how; empty as long as none does."""
    _beats: Silence = field(default_factory=Silence)
    _positions: Silence = field(default_factory=Silence)
    _states: dict[str, dict[str, WorkerState]] = field(default_factory=dict)
    """Holds the last state of each worker of this node that could be read, by group and name."""
    _next_look: float = 0.0

    def __post_init__(self) -> None:
        self._board = NoticeBoard(self.local.heartbeats, is_durable=False)
        self._host = socket.gethostname()

    def look(self) -> str:
        """Look every `LOOK_SECONDS`. Return `sentence` the first time that there is one, after the workers have printed
        their stacks."""
        if self.sentence or time.monotonic() < self._next_look:
            return ""
        self._next_look = time.monotonic() + LOOK_SECONDS
        if not self._can_post():
            return ""
        self._read_all()
        leading = [group for group in self.plan.groups if not group.serves]
        self.nodes.show(self._all_states(), any(self._stand_still(group) for group in leading))
        for group in leading:
            if not self.sentence:
                self.sentence = self.frozen_in(group.name) or self._no_progress_in(group)
                if self.sentence:
                    self._request_stacks(group.name)
        return self.sentence

    def frozen_in(self, name: str) -> str:
        """Return the sentence for a frozen worker of this node's part of a group, or nothing."""
        timeout, states = self.plan.group(name).heartbeat_timeout_seconds, self._states.get(name, {}).values()
        silent = [s for s in states if self._beats.looks((s.name, s.pid)) * LOOK_SECONDS >= timeout]
        here = {process.pid for process in self.alive()} if silent else set()
        silent = [state for state in silent if state.pid in here]  # one that is gone is its launcher's to tell
        return frozen_sentence(silent[0], timeout) if silent else ""

    def _read_all(self) -> None:
        """Read all heartbeats of this node. One that cannot be read now and then has not moved. A group that serves may
        be started again with fewer ranks."""
        for group in self.plan.groups:
            ranks = self.local.ranks(group.name)
            known = {name: state for name, state in self._states.get(group.name, {}).items() if name in ranks}
            self._states[group.name] = known | {name: state for name in ranks if (state := self._state(name))}
        states = self._all_states().values()
        self._beats.note({(s.name, s.pid): s.beat for s in states})
        self._positions.note({s.name: (s.pid, s.position, s.step) for s in states})
        for known in self._states.values():
            known |= {name: replace(state, still=self._still(name)) for name, state in known.items()}

    def _still(self, name: str) -> float:
        return self._positions.looks(name) * LOOK_SECONDS

    def _all_states(self) -> dict[str, WorkerState]:
        return {name: state for states in self._states.values() for name, state in states.items()}

    def _stand_still(self, group: GroupPlan) -> bool:
        """Return whether this node's workers of a group have stood for too long, which node 0 must hear at once."""
        states = self._states[group.name].values()
        return bool(states) and all(state.still >= group.progress_timeout_seconds for state in states)

    def _no_progress_in(self, group: GroupPlan) -> str:
        """Return the sentence for a group none of whose ranks gets further, on whatever node."""
        timeout = group.progress_timeout_seconds
        if self.node_rank or not self._stand_still(group):
            return ""
        states = [*self._states[group.name].values(), *self.nodes.ranks_elsewhere(group.name)]
        if len(states) < group.num_processes or not is_in_its_steps(states):
            return ""
        stands = all(state.still >= timeout for state in states)
        return no_progress_sentence(group, states, timeout) if stands else ""

    def _state(self, name: str) -> WorkerState | None:
        return self._board.read(name, partial(WorkerState.parse, name, self._host))

    def _can_post(self) -> bool:
        """Tell whether files can be written now, as a worker writes its heartbeat."""
        try:
            self._board.post(".agent", {"time": time.time()})
        except OSError:
            return False
        return True

    def _request_stacks(self, group: str) -> None:
        """Make a group's workers print the stacks of all their threads into their logs. A frozen one does not."""
        known = {state.pid for state in self._states[group].values()}
        workers = [process for process in self.alive() if process.pid in known]
        signal_all(workers, signal.SIGUSR2)
        time.sleep(STACK_SECONDS)
