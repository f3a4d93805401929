"""This module reads and writes the bridge files of a run folder, one for each group that serves: where its policy
listens for that group, and the secret by which they know each other. Only this user may read them; both groups do,
however they were started."""

from __future__ import annotations

import random
import secrets
import socket
from collections.abc import Set
from dataclasses import asdict, dataclass, field
from pathlib import Path

from scaleup.artifacts.files import read_json, write_json
from scaleup.errors import ScaleupError

PORTS = range(20_000, 32_000)
"""These ports lie below those that Linux gives to outgoing connections: no such connection takes one of them in
between."""
TRIES = 200


@dataclass(frozen=True)
class BridgeFile:
    address: str
    port: int
    secret: str = field(repr=False)

    def save(self, path: Path) -> None:
        write_json(path, asdict(self), is_secret=True)

    @classmethod
    def read(cls, path: Path) -> BridgeFile:
        """Read a run's bridge. Raises ScaleupError if there is none."""
        try:
            return cls(**read_json(path))
        except (OSError, ValueError, TypeError) as error:
            what = f"does not say where the policy listens ({type(error).__name__})"
            raise ScaleupError.of(str(path), what, "start the run with `scaleup run`") from error


def new_bridge(address: str, port: int | None, group: str, taken: Set[int] = frozenset()) -> BridgeFile:
    """Return a bridge with a secret that no group had before, and a free port of this machine unless one is named.
    Nobody listens yet on the ports that are `taken`.

    Raises ScaleupError if no port is free."""
    return BridgeFile(address, port or free_port(f"{group}.bridge_port", taken), secrets.token_hex(32))


def free_port(key: str, taken: Set[int] = frozenset()) -> int:
    """Find a port that is free on all interfaces of this host, and not `taken`. Raises ScaleupError, with the config
    key that could name one, if none is."""
    for port in (each for each in random.SystemRandom().sample(PORTS, TRIES) if each not in taken):
        with socket.socket() as listener:
            try:
                listener.bind(("", port))
            except OSError:
                continue
            return port
    what = f"no free port from {PORTS.start} to {PORTS.stop - 1} was found"
    raise ScaleupError.of(key, what, "give one")
