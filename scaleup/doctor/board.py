"""This module lets the doctors of several nodes find one another on a notice board in a folder that all must see.

Each posts a nonce of its own, made at its start, and the nonces of the others as it reads them. Whoever posts ours back
lives now, and reads what we post: a notice that an earlier doctor left cannot know it. Nobody leads, and nobody leaves
before the others are done."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from scaleup.artifacts.noticeboard import NoticeBoard

POLL_SECONDS = 0.1
BOOT = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True)
class Node:
    """Holds what a node tells of itself."""

    rank: int
    host: str
    boot: str
    """Is the same for all that run under one kernel."""
    address: str | None
    port: int | None
    """Is the port where the node listens; None where it cannot."""
    versions: dict[str, str]
    nonce: str = field(default_factory=lambda: secrets.token_hex(16))

    def __str__(self) -> str:
        return f"node {self.rank} ({self.host}, {self.address or 'no address'})"


@dataclass(frozen=True)
class DoctorNotice:
    node: Node
    heard: dict[str, str]
    """Maps each other node's rank -> its nonce."""
    is_done: bool = False

    @classmethod
    def parse(cls, value: Any) -> DoctorNotice:
        return cls(Node(**value["node"]), dict(value["heard"]), bool(value["is_done"]))


class DoctorBoard:
    """Stands for one node's place on the board."""

    def __init__(self, folder: Path, own: Node, num_nodes: int) -> None:
        """Take the place. Raises OSError if the folder cannot be made or written."""
        self._board, self._own = NoticeBoard(folder, is_secret=True), own
        self._others = [rank for rank in range(num_nodes) if rank != own.rank]
        self._notices: dict[int, DoctorNotice] = {}
        self._is_done = False
        self._posted: DoctorNotice | None = None
        self._gone: set[int] = set()
        self._post()

    def gather(self, seconds: float) -> dict[int, Node]:
        """Return the other nodes that have come within so many seconds."""
        self._wait(lambda: len(self._alive()) == len(self._others), seconds)
        return {rank: self._notices[rank].node for rank in self._alive()}

    def leave(self, seconds: float) -> None:
        """Stay until all who came are done, then take away what is ours."""
        self._is_done = True
        self._wait(lambda: all(rank in self._gone or self._notices[rank].is_done for rank in self._alive()), seconds)
        with suppress(OSError):
            self._board.withdraw(str(self._own.rank))
            self._board.folder.rmdir()  # the last one can

    def _alive(self) -> list[int]:
        return [rank for rank in self._others if self._hears_us(rank)]

    def _hears_us(self, rank: int) -> bool:
        notice = self._notices.get(rank)
        return notice is not None and notice.heard.get(str(self._own.rank)) == self._own.nonce

    def _wait(self, condition: Callable[[], bool], seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while True:
            self._look()
            self._post()
            if condition() or time.monotonic() > deadline:
                return
            time.sleep(POLL_SECONDS)

    def _look(self) -> None:
        for rank in self._others:
            if notice := self._board.read(str(rank), DoctorNotice.parse):
                self._notices[rank] = notice
            elif self._hears_us(rank) and self._board.lacks(str(rank)):
                self._gone.add(rank)  # it was here, and left in order

    def _post(self) -> None:
        """Post what is new, or what somebody took away with the folder."""
        name = str(self._own.rank)
        notice = DoctorNotice(
            self._own, {str(rank): each.node.nonce for rank, each in self._notices.items()}, self._is_done
        )
        if notice != self._posted or self._board.lacks(name):
            self._board.folder.mkdir(parents=True, exist_ok=True)
            self._board.post(name, asdict(notice))
            self._posted = notice


def boot_id() -> str:
    try:
        return BOOT.read_text().strip()
    except OSError:
        return ""
