"""How the agents of several nodes agree, over the file system they share.

Each keeps one small file in the attempt's folder (`attempts/2/nodes/1.json`), which only it writes, and reads the
others'. `state` is `running`, `ended` (nothing of the node's part is alive any more) or, in node 0's last word, `over`.
`beat` counts on while the agent lives; `stops` once it was told to stop. Node 0 leads: it alone makes attempts, says
where their processes meet, and decides whether there is another."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from typing import Any

from scaleup.artifacts.files import read_json, write_json
from scaleup.artifacts.run_folder import Attempt, RunFolder
from scaleup.launcher.ending import Ending, Part
from scaleup.launcher.meeting import Meeting

BEAT_SECONDS = 1.0
GONE_BEATS = 60
"""An agent is gone when we have beaten so often and it has not: a file system that hangs stops both."""


class NodeGone(Exception):
    """The agent of another node has given no sign of life."""

    def __init__(self, node_rank: int, seconds: float | None = None) -> None:
        seconds = GONE_BEATS * BEAT_SECONDS if seconds is None else seconds
        super().__init__(f"node {node_rank}: its agent gave no sign of life for {seconds:.0f} s")


class Nodes:
    """What this node's agent tells the others and hears from them. With one node there is nobody, and no file."""

    def __init__(self, run: RunFolder, node_rank: int, num_nodes: int) -> None:
        self._run = run
        self._rank = node_rank
        self._others = [rank for rank in range(num_nodes) if rank != node_rank]
        self._attempt: Attempt | None = None
        self._own: dict[str, Any] = {}
        self._heard: dict[int, dict[str, Any]] = {}
        self._silent: dict[int, int] = {}
        self._all_expected = False
        self._next_beat = 0.0

    def enter(self, attempt: Attempt, meeting: Meeting | None = None) -> None:
        """From now on this is the attempt. Nobody is missed in the first one: its nodes may be started one by one.
        Node 0 says where its processes meet."""
        self._all_expected = self._attempt is not None
        self._attempt = attempt
        self._heard, self._silent = {}, dict.fromkeys(self._others, 0)
        self._say(state="running", **({"meeting": asdict(meeting)} if meeting else {}))

    def absent(self) -> list[int]:
        """The nodes that have not come to the attempt yet. Raises NodeGone."""
        self._beat()
        return [rank for rank in self._others if rank not in self._heard]

    def tell_to_stop(self) -> None:
        """A signal has come to this node: it is one to all."""
        if not self._own.get("stops"):
            self._say(**{**self._own, "stops": True})

    def another_stops(self) -> bool:
        """Whether a signal has come to another node. Raises NodeGone."""
        self._beat()
        return any(said.get("stops") for said in self._heard.values())

    def have_ended(self, ranks: Sequence[int]) -> bool:
        """Whether the parts of these others are over. Raises NodeGone."""
        self._beat()
        return self._is_over() or all("part" in self._heard.get(rank, {}) for rank in ranks)

    def end(self, part: Part) -> None:
        """Nothing of this node's part is alive any more. May be said again when a signal has come since."""
        self._all_expected = True
        self._say(state="ended", part=asdict(part))

    def close(self, ending: Ending, restarts: int) -> None:
        """Node 0's last word."""
        self._say(state="over", ending=asdict(ending), restarts=restarts)

    def another_failed(self) -> bool:
        """Whether the part of another node has gone wrong, so that ours must end. Raises NodeGone."""
        self._beat()
        parts = [_part(said) for said in self._heard.values()]
        return self._is_over() or any(part is not None and part.failed for part in parts)

    def parts(self) -> list[Part] | None:
        """The other nodes' parts, once all have ended. Raises NodeGone."""
        self._beat()
        parts = [part for said in self._heard.values() if (part := _part(said))]
        return parts if len(parts) == len(self._others) else None

    def last_word(self) -> tuple[Ending, int] | None:
        """What node 0 closed the run with, and after how many restarts. Raises NodeGone."""
        self._beat()
        said = self._heard.get(0, {})
        return (Ending(**said["ending"]), said["restarts"]) if self._is_over() else None

    def next_attempt(self) -> Attempt | None:
        """A newer attempt that node 0 has begun."""
        newest = self._run.newest_attempt()
        if newest is None or self._attempt is None or newest.number <= self._attempt.number:
            return None
        return newest if newest.node_file(0).is_file() else None

    def _say(self, **news: Any) -> None:
        self._own = {**news, "beat": self._own.get("beat", 0)}
        self._next_beat = 0.0
        if self._others and self._attempt:
            with suppress(OSError):  # of a full disk; the next beat says it
                write_json(self._attempt.node_file(self._rank), self._own)

    def _beat(self) -> None:
        if not self._others or self._attempt is None or time.monotonic() < self._next_beat:
            return
        self._next_beat = time.monotonic() + BEAT_SECONDS
        self._own["beat"] += 1
        try:
            write_json(self._attempt.node_file(self._rank), self._own)
        except OSError:  # a full disk is no reason to end a run, and no time to judge others
            return
        for rank in self._others:
            said = heard(self._attempt, rank)
            is_new = said is not None and said != self._heard.get(rank)
            is_missed = rank in self._heard or self._all_expected
            self._silent[rank] = 0 if is_new or not is_missed else self._silent[rank] + 1
            if said is not None:
                self._heard[rank] = said
            if self._silent[rank] > GONE_BEATS and not self._is_over():
                raise NodeGone(rank)

    def _is_over(self) -> bool:
        return self._heard.get(0, {}).get("state") == "over"


def heard(attempt: Attempt, node_rank: int) -> dict[str, Any] | None:
    """What a node last said in an attempt, where it can be read."""
    with suppress(OSError, ValueError):
        said: dict[str, Any] = read_json(attempt.node_file(node_rank))
        return said
    return None


def meeting_in(attempt: Attempt) -> Meeting | None:
    """Where node 0 has said that the attempt's processes meet."""
    said = (heard(attempt, 0) or {}).get("meeting")
    return Meeting(**said) if said else None


def _part(said: dict[str, Any]) -> Part | None:
    return Part(**said["part"]) if "part" in said else None


class Newcomer:
    """Finds the attempt that node 0 is at, for an agent that has just been started. What node 0 wrote before it was
    killed does not count: only what changes while we look."""

    def __init__(self, run: RunFolder, patience_seconds: float) -> None:
        self._run = run
        self._first = self._look()
        self._patience = patience_seconds
        self._deadline = time.monotonic() + patience_seconds

    def attempt(self) -> Attempt | None:
        """Raises NodeGone."""
        attempt, said = found = self._look()
        if said and found != self._first:
            return attempt
        if time.monotonic() > self._deadline:
            raise NodeGone(0, self._patience)
        return None

    def _look(self) -> tuple[Attempt | None, dict[str, Any] | None]:
        newest = self._run.newest_attempt()
        return newest, heard(newest, 0) if newest else None
