"""This module lets the agents of several nodes agree, on a notice board in the file system they share.

Each keeps one notice in the attempt's folder (`attempts/2/nodes/1.json`), with all that it has to say of its ranks.
Node 0 reads them all, and passes on what concerns everybody; the others read node 0's alone. Node 0 leads: it alone
makes attempts, says where their processes meet, and decides whether there is another.

Beside the notices lies a bell, `bell.json`: whoever has news rings it, which is to replace it, and all hurry to read.
With N nodes that have no news, N notices are written and 2 (N - 1) read in `BEAT_SECONDS`, and N bells are looked at in
`LOOK_SECONDS`: together less than one operation a node every 3 seconds."""

from __future__ import annotations

import socket
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from scaleup.artifacts.noticeboard import NoticeBoard, Silence
from scaleup.artifacts.run_folder import Attempt, RunFolder
from scaleup.launcher.ending import Ending, Part
from scaleup.launcher.ranks import WorkerState
from scaleup.launcher.rendezvous import Rendezvous

LOOK_SECONDS = 6.0
"""Is how many seconds pass between two looks at the bell."""
BEAT_SECONDS = 20.0
"""Is how many seconds pass between two notices of an agent that has no news, and between two readings of them."""
GONE_BEATS = 3
"""Counts our own beats after which an agent that has not beaten is gone: a file system that hangs stops both."""
NEWS_SECONDS = 1.0
"""Is how many seconds pass between two readings while there is news: one piece is seldom alone."""
NEWS_LASTS_SECONDS = 30.0
BELL = "bell"


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
    host: str = ""
    ranks: dict[str, WorkerState] = field(default_factory=dict)
    """Holds what is known of the node's workers, by their names."""
    rendezvous: Rendezvous | None = None
    """Tells where the attempt's processes meet, from node 0."""
    stops: bool = False
    """Tells that a signal has come to the node; from node 0: to any."""
    fails: bool = False
    """Tells that the part of some node has gone wrong, from node 0."""
    ended: list[int] = field(default_factory=list)
    """Names the other nodes whose parts have ended, from node 0."""
    part: Part | None = None
    """Tells how its part ended."""
    ending: Ending | None = None
    """Tells how the run ended, from node 0, after so many `restarts`."""
    restarts: int = 0

    def as_json(self) -> dict[str, Any]:
        """Return what `parse` takes; its ranks without what stands in the notice already."""
        told = asdict(self)
        for rank in told["ranks"].values():
            del rank["name"], rank["host"]
        return told

    @classmethod
    def parse(cls, value: Any) -> NodeNotice:
        kinds: dict[str, Any] = {"rendezvous": Rendezvous, "part": Part, "ending": Ending}
        known = {key: kinds[key](**each) if key in kinds and each else each for key, each in value.items()}
        ranks = {name: WorkerState.parse(name, value["host"], rank) for name, rank in value["ranks"].items()}
        return cls(**{**known, "ranks": ranks})

    def is_news_after(self, other: NodeNotice | None) -> bool:
        """Return whether it says more than that the node lives, and how far its ranks are."""
        return other is None or replace(self, beat=0, ranks={}) != replace(other, beat=0, ranks={})

    @property
    def is_stopped(self) -> bool:
        return self.stops or (self.part is not None and self.part.signalled)

    @property
    def has_failed(self) -> bool:
        return self.fails or (self.part is not None and bool(self.part.failed))


class Nodes:
    """Keeps what this node's agent tells the others, and what those that it listens to last told: node 0 listens to
    all, the others to node 0."""

    def __init__(self, run: RunFolder, node_rank: int, num_nodes: int) -> None:
        self._run = run
        self._rank = node_rank
        self._heard = [0] if node_rank else list(range(1, num_nodes))
        self._attempt: Attempt | None = None
        self._own = NodeNotice("running", host=socket.gethostname())
        self._notices: dict[int, NodeNotice] = {}
        self._silence = Silence()
        self._shown: Any = None
        self._bell: Any = None
        self._is_unsaid = False
        self._next_look = self._next_beat = self._next_search = self._news_until = 0.0

    def enter(self, attempt: Attempt, rendezvous: Rendezvous | None = None) -> None:
        """Enter an attempt; node 0 says where its processes meet. Nobody is missed in the first one: its nodes may be
        started one by one."""
        self._silence = Silence(expected=[] if self._attempt is None else self._heard)
        self._notices, self._shown, self._own = {}, None, replace(self._own, ranks={})
        self._attempt = attempt
        self._post(NodeNotice("running", rendezvous=rendezvous))

    def show(self, ranks: dict[str, WorkerState], stand_still: bool) -> None:
        """Tell how far this node's ranks are with the next beat; at once if there are others than before. That they
        have begun or ceased to stand still is news."""
        self._own = replace(self._own, ranks=ranks)
        before, self._shown = self._shown, ({(name, state.pid) for name, state in ranks.items()}, stand_still)
        if stand_still != (before is not None and before[1]):
            self._post(self._own)
        elif self._shown != before:
            self._say(is_durable=False)

    def ranks_elsewhere(self, group: str) -> list[WorkerState]:
        """Return what the other nodes last told of their ranks of a group, to node 0."""
        told = [state for notice in self._notices.values() for state in notice.ranks.values()]
        return [state for state in told if state.name.startswith(f"{group}-rank")]

    def absent(self) -> list[int]:
        """Return the nodes that have not come to the attempt yet. Raises NodeGone."""
        self._look()
        return [rank for rank in self._heard if rank not in self._notices]

    def tell_to_stop(self) -> None:
        """Post that a signal has come to this node: it is one to all."""
        if not self._own.stops:
            self._post(replace(self._own, stops=True))

    def another_stops(self) -> bool:
        """Return whether a signal has come to another node. Raises NodeGone."""
        self._look()
        return any(notice.is_stopped for notice in self._notices.values())

    def have_ended(self, ranks: Sequence[int]) -> bool:
        """Return whether the parts of these others are over. Raises NodeGone."""
        self._look()
        return self._is_over() or self._ended().issuperset(ranks)

    def end(self, part: Part) -> None:
        """Post that nothing of this node's part is alive any more; again if a signal has come since."""
        self._silence.expect(self._heard)
        self._post(NodeNotice("ended", part=part))

    def close(self, ending: Ending, restarts: int) -> None:
        """Post how the run ended: node 0's last notice."""
        self._post(NodeNotice("over", ending=ending, restarts=restarts))

    def another_failed(self) -> bool:
        """Return whether the part of another node has gone wrong, so that ours must end. Raises NodeGone."""
        self._look()
        return self._is_over() or any(notice.has_failed for notice in self._notices.values())

    def parts(self) -> list[Part] | None:
        """Return the other nodes' parts to node 0, or None until all have ended. Raises NodeGone."""
        self._look()
        parts = [notice.part for notice in self._notices.values() if notice.part is not None]
        return parts if len(parts) == len(self._heard) else None

    def final_ending(self) -> tuple[Ending, int] | None:
        """Return how the run ended and after how many restarts, once node 0 has closed it. Raises NodeGone."""
        self._look()
        notice = self._notices.get(0)
        return (notice.ending, notice.restarts) if notice is not None and notice.ending is not None else None

    def next_attempt(self) -> Attempt | None:
        """Return a newer attempt that node 0 has begun, or None."""
        now = time.monotonic()
        if self._attempt is None or now < self._next_search:
            return None
        self._next_search = now + (NEWS_SECONDS if self._hurries(now) else LOOK_SECONDS)
        newest = self._run.newest_attempt()
        if newest is None or newest.number <= self._attempt.number:
            return None
        return newest if newest.node_file(0).is_file() else None

    def _post(self, notice: NodeNotice) -> None:
        """Say what is news, ring the bell, and look soon for what comes of it."""
        own = self._own
        meets = notice.rendezvous or own.rendezvous  # a node that comes late reads it yet
        notice = replace(notice, beat=own.beat, host=own.host, ranks=own.ranks, rendezvous=meets)
        self._own = self._passing_on(notice)
        self._news_until = time.monotonic() + NEWS_LASTS_SECONDS
        self._next_look = 0.0
        self._say(is_durable=True)
        if self._heard and self._attempt is not None:
            with suppress(OSError):  # of a full disk; they hear of it with their next beat
                rung = {"node": self._rank, "beat": self._own.beat}
                NoticeBoard(self._attempt.nodes, is_durable=False).post(BELL, rung)

    def _say(self, is_durable: bool) -> bool:
        """Write our notice, and return whether it could be: a full disk is no reason to end a run, and the next look
        says it again."""
        if self._attempt is None:
            return False
        self._own = replace(self._own, beat=self._own.beat + 1)
        self._is_unsaid = True
        with suppress(OSError):
            NoticeBoard(self._attempt.nodes, is_durable=is_durable).post(str(self._rank), self._own.as_json())
            self._is_unsaid = False
        return not self._is_unsaid

    def _look(self) -> None:
        """Say that we live, and read what the others say, where it is time or there is news. Raises NodeGone."""
        now = time.monotonic()
        is_beat, is_look, hurries = now >= self._next_beat, now >= self._next_look, self._hurries(now)
        if self._attempt is None or not (is_beat or is_look):
            return
        if is_beat:
            self._next_beat = now + BEAT_SECONDS
        if is_look:
            self._next_look = now + (NEWS_SECONDS if hurries else LOOK_SECONDS)
        if is_beat or self._is_unsaid or self._is_awaited():
            is_beat = self._say(is_durable=self._is_unsaid) and is_beat  # else it is no time to judge others
        is_rung = is_look and self._is_rung()
        if is_beat or is_rung or hurries:
            self._read(now)
        if is_beat:
            self._judge()

    def _hurries(self, now: float) -> bool:
        return now < self._news_until or self._is_awaited()

    def _is_awaited(self) -> bool:
        """Returns whether others may wait for a sign of node 0's, to come to this attempt."""
        return not self._rank and len(self._notices) < len(self._heard)

    def _is_rung(self) -> bool:
        """Returns whether the bell has been rung since we last looked."""
        assert self._attempt is not None
        bell = NoticeBoard(self._attempt.nodes).read(BELL, dict) if self._heard else None
        if bell is None or bell == self._bell:
            return False
        self._bell, self._news_until = bell, time.monotonic() + NEWS_LASTS_SECONDS
        self._next_look = time.monotonic() + NEWS_SECONDS
        return True

    def _read(self, now: float) -> None:
        assert self._attempt is not None
        read = {rank: notice for rank in self._heard if (notice := notice_of(self._attempt, rank))}
        if any(notice.is_news_after(self._notices.get(rank)) for rank, notice in read.items()):
            self._news_until = now + NEWS_LASTS_SECONDS
            self._next_look = min(self._next_look, now + NEWS_SECONDS)
        self._notices |= read
        if (passed_on := self._passing_on(self._own)) != self._own:
            self._post(passed_on)

    def _judge(self) -> None:
        self._silence.note({rank: notice.beat for rank, notice in self._notices.items()})
        for rank in self._heard:
            if self._silence.looks(rank) >= GONE_BEATS and not self._is_over():
                raise NodeGone(rank)

    def _passing_on(self, notice: NodeNotice) -> NodeNotice:
        """Returns node 0's notice with what the others must hear of one another."""
        if self._rank:
            return notice
        others = self._notices.values()
        stops, fails = any(each.is_stopped for each in others), any(each.has_failed for each in others)
        return replace(notice, stops=notice.stops or stops, fails=fails, ended=sorted(self._ended()))

    def _ended(self) -> set[int]:
        """Returns the other nodes whose parts have ended, as far as we have heard."""
        ended = {rank for rank, notice in self._notices.items() if notice.part is not None}
        return ended.union(*(notice.ended for notice in self._notices.values()))

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
