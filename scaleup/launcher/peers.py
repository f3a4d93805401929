"""This module lets the agents of several nodes agree, on a notice board in the file system they share.

Each keeps one notice in the attempt's folder (`attempts/2/nodes/1.json`) and reads the others'. Node 0 leads: it alone
makes attempts, says where their processes meet, and decides whether there is another."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from scaleup.artifacts.noticeboard import NoticeBoard, Silence
from scaleup.artifacts.run_folder import Attempt, RunFolder
from scaleup.launcher.ending import Ending, Part
from scaleup.launcher.rendezvous import Rendezvous

BEAT_SECONDS = 1.0
GONE_BEATS = 60
"""Counts our own beats after which an agent that has not beaten is gone: a file system that hangs stops both."""


class NodeGone(Exception):
    """The agent of another node has given no sign of life."""

    def __init__(self, node_rank: int, seconds: float | None = None) -> None:
        seconds = GONE_BEATS * BEAT_SECONDS if seconds is None else seconds
        super().__init__(f"node {node_rank}: its agent gave no sign of life for {seconds:.0f} s")


@dataclass(frozen=True)
class NodeNotice:
    """Holds what a node's agent tells the others of an attempt."""

    state: Literal["running", "ended", "over"]
    """Is how far the node is: `ended`: nothing of the node's part is alive any more; `over`: node 0 has decided how the
    run ends."""
    beat: int = 0
    """Counts on while the agent lives."""
    rendezvous: Rendezvous | None = None
    """Tells where the attempt's processes meet, from node 0."""
    stops: bool = False
    """Tells that a signal has come to the node."""
    part: Part | None = None
    """Tells how its part ended."""
    ending: Ending | None = None
    """Tells how the run ended, from node 0, after so many `restarts`."""
    restarts: int = 0

    @classmethod
    def parse(cls, value: Any) -> NodeNotice:
        kinds: dict[str, Any] = {"rendezvous": Rendezvous, "part": Part, "ending": Ending}
        return cls(**{key: kinds[key](**each) if key in kinds and each else each for key, each in value.items()})


class Nodes:
    """Keeps what this node's agent tells the others, and what they last told. With one node there is nobody, and no
    file."""

    def __init__(self, run: RunFolder, node_rank: int, num_nodes: int) -> None:
        self._run = run
        self._rank = node_rank
        self._others = [rank for rank in range(num_nodes) if rank != node_rank]
        self._attempt: Attempt | None = None
        self._own = NodeNotice("running")
        self._notices: dict[int, NodeNotice] = {}
        self._silence = Silence()
        self._next_beat = 0.0

    def enter(self, attempt: Attempt, rendezvous: Rendezvous | None = None) -> None:
        """Enter an attempt; node 0 says where its processes meet. Nobody is missed in the first one: its nodes may be
        started one by one."""
        self._silence = Silence(expected=[] if self._attempt is None else self._others)
        self._notices = {}
        self._attempt = attempt
        self._post(NodeNotice("running", rendezvous=rendezvous))

    def absent(self) -> list[int]:
        """Return the nodes that have not come to the attempt yet. Raises NodeGone."""
        self._beat()
        return [rank for rank in self._others if rank not in self._notices]

    def tell_to_stop(self) -> None:
        """Post that a signal has come to this node: it is one to all."""
        if not self._own.stops:
            self._post(replace(self._own, stops=True))

    def another_stops(self) -> bool:
        """Return whether a signal has come to another node. Raises NodeGone."""
        self._beat()
        return any(notice.stops for notice in self._notices.values())

    def have_ended(self, ranks: Sequence[int]) -> bool:
        """Return whether the parts of these others are over. Raises NodeGone."""
        self._beat()
        ended = {rank for rank, notice in self._notices.items() if notice.part is not None}
        return self._is_over() or ended.issuperset(ranks)

    def end(self, part: Part) -> None:
        """Post that nothing of this node's part is alive any more; again if a signal has come since."""
        self._silence.expect(self._others)
        self._post(NodeNotice("ended", part=part))

    def close(self, ending: Ending, restarts: int) -> None:
        """Post how the run ended: node 0's last notice."""
        self._post(NodeNotice("over", ending=ending, restarts=restarts))

    def another_failed(self) -> bool:
        """Return whether the part of another node has gone wrong, so that ours must end. Raises NodeGone."""
        self._beat()
        return self._is_over() or any(part.failed for part in self._parts())

    def parts(self) -> list[Part] | None:
        """Return the other nodes' parts, or None until all have ended. Raises NodeGone."""
        self._beat()
        parts = self._parts()
        return parts if len(parts) == len(self._others) else None

    def final_ending(self) -> tuple[Ending, int] | None:
        """Return how the run ended and after how many restarts, once node 0 has closed it. Raises NodeGone."""
        self._beat()
        notice = self._notices.get(0)
        return (notice.ending, notice.restarts) if notice is not None and notice.ending is not None else None

    def next_attempt(self) -> Attempt | None:
        """Return a newer attempt that node 0 has begun, or None."""
        newest = self._run.newest_attempt()
        if newest is None or self._attempt is None or newest.number <= self._attempt.number:
            return None
        return newest if newest.node_file(0).is_file() else None

    def _post(self, notice: NodeNotice) -> None:
        self._own = replace(notice, beat=self._own.beat)
        self._next_beat = 0.0
        if self._others and self._attempt:
            with suppress(OSError):  # of a full disk; the next beat says it
                NoticeBoard(self._attempt.nodes).post(str(self._rank), asdict(self._own))

    def _beat(self) -> None:
        if not self._others or self._attempt is None or time.monotonic() < self._next_beat:
            return
        self._next_beat = time.monotonic() + BEAT_SECONDS
        self._own = replace(self._own, beat=self._own.beat + 1)
        try:
            NoticeBoard(self._attempt.nodes).post(str(self._rank), asdict(self._own))
        except OSError:  # a full disk is no reason to end a run, and no time to judge others
            return
        read = {rank: notice for rank in self._others if (notice := notice_of(self._attempt, rank))}
        self._silence.note(read)
        self._notices |= read
        for rank in self._others:
            if self._silence.looks(rank) > GONE_BEATS and not self._is_over():
                raise NodeGone(rank)

    def _parts(self) -> list[Part]:
        return [notice.part for notice in self._notices.values() if notice.part is not None]

    def _is_over(self) -> bool:
        return 0 in self._notices and self._notices[0].state == "over"


def notice_of(attempt: Attempt, node_rank: int) -> NodeNotice | None:
    """Return a node's notice in an attempt; None if there is none, or none that can be read now."""
    return NoticeBoard(attempt.nodes).read(str(node_rank), NodeNotice.parse)


def rendezvous_of(attempt: Attempt) -> Rendezvous | None:
    """Return where the attempt's processes meet, once node 0 has posted it."""
    notice = notice_of(attempt, 0)
    return notice.rendezvous if notice else None


class Newcomer:
    """Finds the attempt that node 0 is at, for an agent that has just been started. What node 0 wrote before it was
    killed does not count: only what changes while we look."""

    def __init__(self, run: RunFolder, patience_seconds: float) -> None:
        self._run = run
        self._first = self._look()
        self._patience = patience_seconds
        self._deadline = time.monotonic() + patience_seconds

    def attempt(self) -> Attempt | None:
        """Return the attempt once node 0 shows that it lives. Raises NodeGone after `patience_seconds`."""
        attempt, notice = seen = self._look()
        if notice and seen != self._first:
            return attempt
        if time.monotonic() > self._deadline:
            raise NodeGone(0, self._patience)
        return None

    def _look(self) -> tuple[Attempt | None, NodeNotice | None]:
        newest = self._run.newest_attempt()
        return newest, notice_of(newest, 0) if newest else None
