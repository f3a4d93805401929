"""This module sends messages between a policy and its generator: JSON and the bytes of arrays, in signed frames over a
socket. There is no pickle. It imports the standard library alone.

Both know the run's secret. Each gives the other a number to sign with it, and from both comes the key that signs the
frames of this connection: nothing of another run, another connection or another place in the order is taken."""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import socket
import struct
from contextlib import suppress
from typing import Any

HELLO_SECONDS = 10.0
"""Bounds what takes moments between two processes that are both alive."""
MAX_HEAD = 64 * 2**20
MAX_BODY = 2**32
NUMBER_BYTES = MAC_BYTES = 32
_FRAME = struct.Struct("<IQ32s")
"""Packs the bytes of the head, those of the body, and the MAC."""


class ConnectionLost(Exception):
    """Tells that the other side is gone, hangs, or is not of this run."""


class Silent(ConnectionLost):
    """Tells that the other side is there, and says nothing."""


class Channel:
    """Is one side of a connection whose two sides have proved that they know the run's secret."""

    def __init__(self, connection: socket.socket, key: bytes, sends_as: bytes, receives_as: bytes) -> None:
        self._connection, self._key = connection, key
        self._sends_as, self._receives_as = sends_as, receives_as
        self._sent = self._received = 0

    def send(self, head: Any, body: bytes = b"") -> None:
        """Send a message. Raises ConnectionLost."""
        text = json.dumps(head).encode()
        mac = self._mac(self._sends_as, self._sent, text, body)
        self._sent += 1
        try:
            self._connection.settimeout(None)
            self._connection.sendall(_FRAME.pack(len(text), len(body), mac) + text)
            self._connection.sendall(body)
        except OSError as error:
            raise ConnectionLost(f"the other side takes nothing: {error}") from error

    def receive(self, seconds: float | None = None) -> tuple[Any, bytes]:
        """Wait for the next message, at most `seconds` (None: forever) for it to begin and between its parts.

        Raises ConnectionLost if none comes, and for one that is not signed as it must be."""
        self._connection.settimeout(seconds)
        head_bytes, body_bytes, mac = _FRAME.unpack(_read(self._connection, _FRAME.size))
        if head_bytes > MAX_HEAD or body_bytes > MAX_BODY:
            raise ConnectionLost(f"a message of {head_bytes} and {body_bytes} bytes came, which is too large")
        text, body = _read(self._connection, head_bytes), _read(self._connection, body_bytes)
        if not hmac.compare_digest(mac, self._mac(self._receives_as, self._received, text, body)):
            raise ConnectionLost("a message came that is not signed with this run's secret")
        self._received += 1
        return json.loads(text), body

    def close(self) -> None:
        """Close the connection; a `receive` in another thread ends with it."""
        with suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)
        self._connection.close()

    def _mac(self, sender: bytes, number: int, text: bytes, body: bytes) -> bytes:
        signed = hmac.new(self._key, sender + struct.pack("<QQ", number, len(text)), hashlib.sha256)
        signed.update(text)
        signed.update(body)
        return signed.digest()


POLICY, ENGINE = b"policy", b"engine"


def greet_engine(connection: socket.socket, secret: bytes) -> Channel:
    """Return the policy's side of a connection that came in. Raises ConnectionLost if it is not of this run."""
    own = os.urandom(NUMBER_BYTES)
    _write(connection, own)
    other, proof = _read(connection, NUMBER_BYTES), _read(connection, MAC_BYTES)
    if not hmac.compare_digest(proof, _signed(secret, ENGINE, own, other)):
        raise ConnectionLost("a generator came that does not know this run's secret")
    _write(connection, _signed(secret, POLICY, own, other))
    return Channel(connection, _signed(secret, b"key", own, other), POLICY, ENGINE)


def greet_policy(connection: socket.socket, secret: bytes) -> Channel:
    """Return the engine's side of a connection; the policy may take its time before it answers.

    Raises ConnectionLost if the other side is not this run's policy."""
    other, own = _read(connection, NUMBER_BYTES), os.urandom(NUMBER_BYTES)
    _write(connection, own + _signed(secret, ENGINE, other, own))
    if not hmac.compare_digest(_read(connection, MAC_BYTES), _signed(secret, POLICY, other, own)):
        raise ConnectionLost("the policy does not know this run's secret")
    return Channel(connection, _signed(secret, b"key", other, own), ENGINE, POLICY)


def _signed(secret: bytes, role: bytes, policys: bytes, engines: bytes) -> bytes:
    return hmac.new(secret, role + policys + engines, hashlib.sha256).digest()


def _write(connection: socket.socket, data: bytes) -> None:
    try:
        connection.sendall(data)
    except OSError as error:
        raise ConnectionLost(f"the other side takes nothing: {error}") from error


def _read(connection: socket.socket, size: int) -> bytes:
    data = bytearray(size)
    view, place = memoryview(data), 0
    try:
        while place < size:
            count = connection.recv_into(view[place:])
            if not count:
                raise ConnectionLost("the other side is gone")
            place += count
    except TimeoutError as error:
        raise Silent("the other side gives no answer") from error
    except OSError as error:
        raise ConnectionLost(f"the other side is gone: {error}") from error
    return bytes(data)
