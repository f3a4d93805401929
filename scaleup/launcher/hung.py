"""Finds workers that are alive and do not go on: by their signs of life, which they write into the attempt's folder.

Two kinds. *Frozen*: the process shows no beat (SIGSTOP, a device or a file system that does not answer). *Standing
still*: it beats, and its main thread gets no further; then all ranks of its group stand still, and those that have
entered fewest collectives are the ones that the others wait for.

Time is counted in looks of our own, each of which begins with a file that we write as workers write theirs: where a
file system hangs or a disk is full, nobody is judged."""

from __future__ import annotations

import json
import signal
import socket
import time
from collections.abc import Callable, Hashable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from scaleup.artifacts.files import read_json
from scaleup.artifacts.run_folder import Attempt
from scaleup.launcher.processes import RunProcess, signal_all
from scaleup.plan.types import GroupPlan, Plan

LOOK_SECONDS = 2.0
STACK_SECONDS = 1.0
"""What workers that hang may take to print their stacks."""


@dataclass(frozen=True)
class Sign:
    """What a worker last said."""

    name: str
    """policy-rank1"""
    host: str
    node: int
    pid: int
    beat: int
    phase: str
    step: int | None
    steps: int
    position: tuple[int, ...]
    """Collectives entered, and what was begun since: the smaller, the further behind."""

    @classmethod
    def read(cls, file: Path) -> Sign | None:
        """None for one that is not there, or cannot be read now."""
        with suppress(OSError, ValueError, TypeError, KeyError):
            said = read_json(file)
            return cls(**{**said, "name": file.stem, "position": tuple(said["position"])})
        return None

    @property
    def place(self) -> str:
        return f"in phase {self.phase}" + (f" of step {self.step}" if self.step else "")


class Unmoved:
    """Since how many of our looks each key says the same."""

    def __init__(self, look_seconds: float) -> None:
        self._look_seconds = look_seconds
        self._last: dict[Hashable, Any] = {}
        self._looks: dict[Hashable, int] = {}

    def note(self, said: Mapping[Any, Any]) -> None:
        """A look. Whoever could not be read has said nothing new."""
        for key in self._last.keys() | said.keys():
            is_new = key in said and (key not in self._last or said[key] != self._last[key])
            self._looks[key] = 0 if is_new else self._looks[key] + 1
        self._last.update(said)

    def seconds(self, key: Hashable) -> float:
        """At least so many passed; 0 for one never heard of."""
        return self._looks.get(key, 0) * self._look_seconds


def frozen_sentence(sign: Sign, seconds: float) -> str:
    return f"{sign.name} on host {sign.host} hangs: no sign of life for {seconds:g} s, last seen {sign.place}"


def still_sentence(group: GroupPlan, signs: Iterable[Sign], seconds: float) -> str:
    """Of a group that stands still: whom the others wait for, as far as their positions tell."""
    ranks = sorted(signs, key=lambda sign: int(sign.name.rpartition("rank")[2]))
    last = min(sign.position for sign in ranks)
    behind = [sign for sign in ranks if sign.position == last]
    first, how = behind[0], f"no progress for {seconds:g} s"
    if len(behind) == len(ranks) > 1:
        return f"group {group.name} hangs: {how} on any of its ranks, {first.place}"
    others = [f"{sign.name} on host {sign.host}" for sign in behind[1:4]] + ["others"] * (len(behind) > 4)
    who = " and ".join([f"{first.name} on host {first.host}", *others])
    waits = ", and the others wait for it" if len(ranks) > 1 and len(behind) == 1 else ""
    return f"{who} {'hang' if others else 'hangs'}: {how}, {first.place}{waits}"


def is_in_its_steps(signs: Iterable[Sign]) -> bool:
    """Whether a group has taken a step in this attempt, and has more to take. What comes before and after (reading,
    loading, compiling, writing the result) takes as long as it takes."""
    signs = list(signs)
    return all(sign.step is not None for sign in signs) and any(sign.steps > 1 for sign in signs)


@dataclass
class HungWorkers:
    """Those of an attempt, as one node's agent sees them: it judges the beats of its own workers, and the first node
    also whether a group that leads gets any further."""

    attempt: Attempt
    plan: Plan
    node_rank: int
    alive: Callable[[], list[RunProcess]]
    """This node's processes of the attempt, now."""
    found: str = ""
    """The sentence for a group that leads, once one of its workers hangs."""
    _beats: Unmoved = field(default_factory=lambda: Unmoved(LOOK_SECONDS))
    _still: dict[str, Unmoved] = field(default_factory=dict)
    _signs: dict[str, list[Sign]] = field(default_factory=dict)
    _far_signs: dict[str, dict[int, Sign]] = field(default_factory=dict)
    """The last of each rank that could be read: of many on a network file system, some cannot be now and then."""
    _next_look: float = 0.0
    _next_far_look: dict[str, float] = field(default_factory=dict)

    def look(self) -> str:
        """Now and then. The sentence, the first time that there is one, after the workers were asked for their
        stacks."""
        if self.found or time.monotonic() < self._next_look:
            return ""
        self._next_look = time.monotonic() + LOOK_SECONDS
        if not self._mark():
            return ""
        for group in self.plan.groups:
            self._signs[group.name] = self._own_signs(group)
        self._beats.note({(s.name, s.pid): s.beat for signs in self._signs.values() for s in signs})
        for group in self.plan.groups:
            if not group.serves and not self.found:
                self.found = self.frozen_in(group.name) or self._standing_still(group)
                if self.found:
                    self._ask_for_stacks(group.name)
        return self.found

    def frozen_in(self, name: str) -> str:
        """The sentence for a worker of this node's part of a group that shows no sign of life, or nothing."""
        timeout = self.plan.group(name).heartbeat_timeout_seconds
        silent = [s for s in self._signs.get(name, []) if self._beats.seconds((s.name, s.pid)) >= timeout]
        here = {process.pid for process in self.alive()} if silent else set()
        silent = [sign for sign in silent if sign.pid in here]  # one that is gone is its launcher's to tell
        return frozen_sentence(silent[0], timeout) if silent else ""

    def _standing_still(self, group: GroupPlan) -> str:
        timeout, name = group.progress_timeout_seconds, group.name
        if self.node_rank or time.monotonic() < self._next_far_look.get(name, 0.0):
            return ""
        every = max(LOOK_SECONDS, timeout / 50)  # all ranks of all nodes are looked at
        self._next_far_look[name] = time.monotonic() + every
        known = self._far_signs.setdefault(name, {})
        known |= {rank: sign for rank in range(group.num_processes) if (sign := self._sign(name, rank))}
        signs = [known[rank] for rank in sorted(known)]
        looks = self._still.setdefault(name, Unmoved(every))
        looks.note({sign.name: (sign.pid, sign.position, sign.step) for sign in signs})
        if len(signs) < group.num_processes or not is_in_its_steps(signs):
            self._still.pop(name)
            return ""
        stands = all(looks.seconds(sign.name) >= timeout for sign in signs)
        return still_sentence(group, signs, timeout) if stands else ""

    def _own_signs(self, group: GroupPlan) -> list[Sign]:
        """A group that serves may have another size than planned, and is small."""
        count = group.num_processes // group.num_nodes
        ranks = range((self.node_rank - group.first_node) * count, (self.node_rank - group.first_node + 1) * count)
        if group.serves:
            ranks = range(len(list(self.attempt.signs.glob(f"{group.name}-rank*.json"))))
        signs = [self._sign(group.name, rank) for rank in ranks]
        own = (self.node_rank, socket.gethostname())
        return [sign for sign in signs if sign and (sign.node, sign.host) == own]

    def _sign(self, group: str, rank: int) -> Sign | None:
        return Sign.read(self.attempt.sign_file(f"{group}-rank{rank}"))

    def _mark(self) -> bool:
        """Whether files can be written now, as a worker writes its sign."""
        file = self.attempt.signs / f".node{self.node_rank}"
        aside = file.with_name(f"{file.name}.tmp")
        with suppress(OSError):
            aside.write_text(json.dumps({"at": time.time()}), encoding="utf-8")
            aside.replace(file)
            return True
        return False

    def _ask_for_stacks(self, group: str) -> None:
        """Of all threads, into their logs: also of those that wait. One that is frozen does not answer."""
        known = {sign.pid for sign in self._signs[group]}
        workers = [process for process in self.alive() if process.pid in known]
        signal_all(workers, signal.SIGUSR2)
        time.sleep(STACK_SECONDS)
