"""This module holds what is known of one worker, and the sentences for those that hang."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from scaleup.plan.types import GroupPlan


@dataclass(frozen=True)
class WorkerState:
    """Holds what a worker's last heartbeat says, and for how long its agent has seen no change."""

    name: str
    """Is its group's name and its rank: `policy-rank1`."""
    host: str
    pid: int
    beat: int
    phase: str
    step: int | None
    steps: int
    position: tuple[int, ...]
    """Counts the collectives entered, and what was begun since: the smaller, the further behind."""
    num_steps: int | None = None
    """Is the number of the run's last step, as far as the worker knows."""
    step_seconds: float = 0.0
    """Is how long the steps took that it has ended: `steps - 1` while it is in one."""
    still: float = 0.0
    """Is how many seconds its position has not moved, in looks of its agent's."""

    @classmethod
    def parse(cls, name: str, host: str, value: Any) -> WorkerState:
        return cls(**{**value, "name": name, "host": host, "position": tuple(value["position"])})

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
