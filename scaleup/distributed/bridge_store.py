"""The store where the policy's and the reward model's process groups meet, and what they say to each other there before
they share a process group: signed, because a TCPStore lets anybody write."""

from __future__ import annotations

import hashlib
import hmac
import json
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from torch.distributed import PrefixStore, TCPStore

from scaleup.errors import ScaleupError

PROTOCOL = 1
CONNECT_SECONDS = 30.0
"""For what takes moments between two processes that are both alive."""


class BridgeLost(Exception):
    """The other side died, hangs, or went on without us."""


@dataclass(frozen=True)
class BridgePlace:
    """Where the two groups meet. Both are given the same one."""

    address: str
    """Of the policy's rank 0; it listens on this address only."""
    port: int
    secret: str
    """Hexadecimal, of this run alone: whoever has it may ask for scores and give them."""
    policy_size: int

    @property
    def key(self) -> bytes:
        return bytes.fromhex(self.secret)

    def __repr__(self) -> str:
        return f"BridgePlace({self.address}:{self.port}, policy_size={self.policy_size})"  # secrets stay out of logs


class Meeting:
    """The store at the policy's rank 0. Its keys are `generation`, a number, and under `g<number>/` what the two sides
    of that generation say to each other. Every method raises BridgeLost when the store is gone: so is the policy."""

    def __init__(self, store: TCPStore) -> None:
        self._store = store

    @classmethod
    def host(cls, place: BridgePlace) -> Meeting:
        """Raises ScaleupError when the port cannot be had."""
        family = socket.getaddrinfo(place.address, place.port, type=socket.SOCK_STREAM)[0][0]
        try:  # by itself TCPStore listens on all interfaces
            listener = socket.create_server((place.address, place.port), family=family)
        except OSError as error:
            what = f"the policy cannot listen on {place.address}:{place.port}: {error.strerror}"
            raise ScaleupError.of("reward bridge", what, "start the run again; it takes another port") from error
        seconds = timedelta(seconds=CONNECT_SECONDS)
        port, descriptor = listener.getsockname()[1], listener.detach()
        return cls(
            TCPStore(place.address, port, None, True, seconds, wait_for_workers=False, master_listen_fd=descriptor)
        )

    @classmethod
    def join(cls, place: BridgePlace, seconds: float, stopped: Callable[[], bool] = lambda: False) -> Meeting:
        """Wait so long for the store to be opened. Raises BridgeLost."""
        deadline = time.monotonic() + seconds
        while True:  # not in TCPStore's own loop, where no signal is heard
            try:
                socket.create_connection((place.address, place.port), timeout=5).close()
                store = TCPStore(
                    place.address, place.port, None, False, timedelta(seconds=CONNECT_SECONDS), wait_for_workers=False
                )
                return cls(store)
            except (OSError, RuntimeError) as error:
                if stopped() or time.monotonic() > deadline:
                    at = f"{place.address}:{place.port}"
                    raise BridgeLost(f"no policy answered at {at} within {seconds:g} s: {error}") from error
            time.sleep(0.1)

    def generation(self) -> int:
        return self._asked(lambda: self._store.add("generation", 0))

    def open_next(self) -> None:
        self._asked(lambda: self._store.add("generation", 1))

    def claim(self, generation: int) -> bool:
        """Whether we are the first to want it."""
        return self._asked(lambda: self._store.add(f"g{generation}/claims", 1)) == 1

    def write(self, key: str, text: str) -> None:
        self._asked(lambda: self._store.set(key, text))

    def read(self, key: str) -> bytes | None:
        """None where nothing has been written; never waits."""
        return self._asked(lambda: self._store.get(key) if self._store.check([key]) else None)

    def prefixed(self, prefix: str) -> PrefixStore:
        return PrefixStore(prefix, self._store)

    def _asked(self, question: Callable[[], Any]) -> Any:
        try:
            return question()
        except RuntimeError as error:
            raise BridgeLost("the policy is gone: the store at its rank 0 does not answer") from error


def signed(key: bytes, topic: str, value: Any) -> str:
    text = json.dumps(value)
    return hmac.new(key, f"{topic} {text}".encode(), hashlib.sha256).hexdigest() + text


def verified(key: bytes, topic: str, found: bytes) -> Any:
    """What `signed` was given. Raises ScaleupError when somebody else wrote it."""
    mac, text = found[:64], found[64:]
    if not hmac.compare_digest(mac, hmac.new(key, topic.encode() + b" " + text, hashlib.sha256).hexdigest().encode()):
        raise foreign(f"what stands in the store as {topic} is not signed with this run's secret")
    return json.loads(text)


def session_key(place: BridgePlace, generation: int, nonce: str) -> bytes:
    """A key of this generation alone: nothing said in another one is believed."""
    return hmac.new(place.key, f"{PROTOCOL} {generation} {nonce}".encode(), hashlib.sha256).digest()


def foreign(what: str) -> ScaleupError:
    remedy = "end what else uses this address and port, and start both groups of one run anew"
    return ScaleupError.of("reward bridge", what, remedy)


def own_address(place: BridgePlace) -> str:
    """The address of this machine that faces the planned one; it is the planned one on that machine itself."""
    family, kind, protocol, _, address = socket.getaddrinfo(place.address, place.port, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind, protocol) as probe:
        probe.connect(address)  # UDP: nothing is sent
        return str(probe.getsockname()[0])
