"""This module holds the store through which the policy's and the reward model's process groups meet: messages in it are
signed, because a TCPStore lets anybody write."""

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
"""Bounds what takes moments between two processes that are both alive."""


class BridgeLost(Exception):
    """Tells that the other group died, hangs, or went on without this one."""


@dataclass(frozen=True)
class BridgePlace:
    """Holds address and secret of the bridge, the same for both groups."""

    address: str
    """Is the address of the policy's rank 0; it listens on this address only."""
    port: int
    secret: str
    """Is this run's own, in hexadecimal: whoever has it may request and send scores."""
    policy_size: int
    section: str = "reward"
    """Is the config key of what scores there, which errors name."""

    @property
    def key(self) -> bytes:
        return bytes.fromhex(self.secret)

    def __repr__(self) -> str:
        return f"BridgePlace({self.address}:{self.port}, policy_size={self.policy_size})"  # secrets stay out of logs


class BridgeStore:
    """Wraps the TCPStore that the policy's rank 0 hosts. Its keys are `generation`, a number, and under `g<number>/`
    the messages of that generation: offer, hello, go. Every method raises BridgeLost if the store, and so the policy,
    is gone."""

    def __init__(self, store: TCPStore) -> None:
        self._store = store

    @classmethod
    def host(cls, place: BridgePlace) -> BridgeStore:
        """Opens the store on the policy's rank 0. Raises ScaleupError if the port cannot be opened."""
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
    def join(cls, place: BridgePlace, seconds: float, stopped: Callable[[], bool] = lambda: False) -> BridgeStore:
        """Connects to the store, once it is opened. Raises BridgeLost if it is not within `seconds`, or if
        `stopped`."""
        deadline = time.monotonic() + seconds
        while True:  # not in TCPStore's own loop, where signals are not noticed
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
        """Returns the newest generation that was opened; 0 before the first."""
        return self._checked(lambda: self._store.add("generation", 0))

    def open_next(self) -> None:
        self._checked(lambda: self._store.add("generation", 1))

    def claim(self, generation: int) -> bool:
        """Claims a generation for this reward group. Returns False if another one has it."""
        return self._checked(lambda: self._store.add(f"g{generation}/claims", 1)) == 1

    def write(self, key: str, text: str) -> None:
        self._checked(lambda: self._store.set(key, text))

    def read(self, key: str) -> bytes | None:
        """Returns the value of a key, or None if it was not written; never waits."""
        return self._checked(lambda: self._store.get(key) if self._store.check([key]) else None)

    def prefixed(self, prefix: str) -> PrefixStore:
        return PrefixStore(prefix, self._store)

    def _checked(self, operation: Callable[[], Any]) -> Any:
        try:
            return operation()
        except RuntimeError as error:
            raise BridgeLost("the policy is gone: the store at its rank 0 does not answer") from error


def signed(key: bytes, topic: str, value: Any) -> str:
    """Returns a message for `verified`: HMAC-SHA256 in hexadecimal, then the value as JSON."""
    text = json.dumps(value)
    return hmac.new(key, f"{topic} {text}".encode(), hashlib.sha256).hexdigest() + text


def verified(key: bytes, topic: str, message: bytes) -> Any:
    """Returns the value of a message of `signed`. Raises ScaleupError if it was not signed with this key and topic."""
    mac, text = message[:64], message[64:]
    if not hmac.compare_digest(mac, hmac.new(key, topic.encode() + b" " + text, hashlib.sha256).hexdigest().encode()):
        raise foreign(f"the store's message {topic} is not signed with this run's secret")
    return json.loads(text)


def session_key(place: BridgePlace, generation: int, nonce: str) -> bytes:
    """Returns the key that signs the messages of one generation: messages of another one do not verify."""
    return hmac.new(place.key, f"{PROTOCOL} {generation} {nonce}".encode(), hashlib.sha256).digest()


def foreign(what: str) -> ScaleupError:
    """Returns the error for a message of another run."""
    remedy = "end what else uses this address and port, and start both groups of one run anew"
    return ScaleupError.of("reward bridge", what, remedy)


def own_address(place: BridgePlace) -> str:
    """Returns the address of this machine from which the planned one is reached; on that machine the planned one
    itself."""
    family, kind, protocol, _, address = socket.getaddrinfo(place.address, place.port, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind, protocol) as probe:
        probe.connect(address)  # UDP: nothing is sent
        return str(probe.getsockname()[0])
