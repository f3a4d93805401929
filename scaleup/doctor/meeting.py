"""The doctors of several nodes find one another in a folder that all must see.

Each writes `K.json` with a nonce of its own, made at its start, and the nonces of the others as it reads them. Whoever
writes ours back lives now, and reads what we write: files that an earlier doctor left cannot know it. Nobody leads, and
nobody leaves before the others have said that they are done."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from scaleup.artifacts.files import read_json, write_json

POLL_SECONDS = 0.1
BOOT = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True)
class Node:
    """What a node says of itself."""

    rank: int
    host: str
    boot: str
    """The same for all that run under one kernel."""
    address: str | None
    port: int | None
    """Where it listens; None where it cannot."""
    versions: dict[str, str]
    nonce: str = field(default_factory=lambda: secrets.token_hex(16))

    def __str__(self) -> str:
        return f"node {self.rank} ({self.host}, {self.address or 'no address'})"


class Meeting:
    def __init__(self, folder: Path, own: Node, num_nodes: int) -> None:
        """Raises OSError where the folder cannot be made or written."""
        self._folder, self._own = folder, own
        self._others = [rank for rank in range(num_nodes) if rank != own.rank]
        self._said: dict[int, dict[str, Any]] = {}
        self._is_done = False
        self._written: dict[str, Any] | None = None
        self._gone: set[int] = set()
        folder.mkdir(parents=True, exist_ok=True)
        self._write()

    def gather(self, seconds: float) -> dict[int, Node]:
        """The other nodes that have come within so many seconds."""
        self._wait(lambda: len(self._alive()) == len(self._others), seconds)
        return {rank: Node(**self._said[rank]["node"]) for rank in self._alive()}

    def leave(self, seconds: float) -> None:
        """Stay until all who came are done, then take away what is ours."""
        self._is_done = True
        self._wait(lambda: all(rank in self._gone or self._said[rank]["is_done"] for rank in self._alive()), seconds)
        with suppress(OSError):
            self._file(self._own.rank).unlink(missing_ok=True)
            self._folder.rmdir()  # the last one can

    def _alive(self) -> list[int]:
        return [rank for rank in self._others if self._hears_us(self._said.get(rank))]

    def _hears_us(self, said: dict[str, Any] | None) -> bool:
        return said is not None and said["heard"].get(str(self._own.rank)) == self._own.nonce

    def _wait(self, condition: Callable[[], bool], seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while True:
            self._look()
            self._write()
            if condition() or time.monotonic() > deadline:
                return
            time.sleep(POLL_SECONDS)

    def _look(self) -> None:
        for rank in self._others:
            try:
                said = read_json(self._file(rank))
                Node(**said["node"]), said["heard"].get, said["is_done"]
            except FileNotFoundError:
                if self._hears_us(self._said.get(rank)):
                    self._gone.add(rank)  # it was here, and left in order
                continue
            except (OSError, ValueError, KeyError, TypeError, AttributeError):
                continue
            self._said[rank] = said

    def _write(self) -> None:
        heard = {str(rank): said["node"]["nonce"] for rank, said in self._said.items()}
        news = {"node": asdict(self._own), "heard": heard, "is_done": self._is_done}
        file = self._file(self._own.rank)
        if news != self._written or not file.exists():
            self._folder.mkdir(parents=True, exist_ok=True)
            write_json(file, news, is_secret=True)
            self._written = news

    def _file(self, rank: int) -> Path:
        return self._folder / f"{rank}.json"


def boot_id() -> str:
    try:
        return BOOT.read_text().strip()
    except OSError:
        return ""
