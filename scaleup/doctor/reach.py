"""This module examines whether the nodes reach one another over TCP, at the addresses that a run would use, and whether
their clocks agree.

One line of JSON each way. Whoever does not know the listener's nonce, which stands in the shared folder, gets no
answer."""

from __future__ import annotations

import hmac
import json
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from scaleup.doctor.board import Node
from scaleup.doctor.finding import Finding, fail, ok
from scaleup.doctor.network import WITH_INTERFACE
from scaleup.doctor.storage import clock_finding

LINE = 4096
"""Counts the bytes of the longest line that is read."""
SECONDS = 5.0
"""Bounds the seconds of a connection, until it is made and until each line."""
AT_ONCE = 16
Clock = Callable[[], float]


class Listener:
    """Answers on one address until it is closed. Raises OSError where it cannot listen there."""

    def __init__(self, address: str, port: int, rank: int, nonce: str, clock: Clock = time.time) -> None:
        self._rank, self._nonce, self._clock = rank, nonce, clock
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self._socket.bind((address, port))
            self._socket.listen(128)
        except OSError:
            self._socket.close()
            raise
        self.port: int = self._socket.getsockname()[1]
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def close(self) -> None:
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)  # wakes accept()
        self._socket.close()
        self._thread.join(2 * SECONDS)

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return  # closed
            with connection, suppress(OSError, ValueError, KeyError, TypeError):
                self._answer(connection)

    def _answer(self, connection: socket.socket) -> None:
        request = _read_line(connection)
        if hmac.compare_digest(str(request["nonce"]), self._nonce):
            _write_line(connection, {"rank": self._rank, "echo": request["challenge"], "time": self._clock()})


@dataclass(frozen=True)
class Answer:
    seconds: float
    """Counts the seconds there and back."""
    skew: float
    """Tells by how many seconds its clock is ahead of ours."""


def call(node: Node, clock: Clock = time.time) -> Answer:
    """Call a node's listener. Raises OSError if it cannot be reached, ValueError if somebody else answers."""
    assert node.address is not None and node.port is not None
    challenge = secrets.token_hex(8)
    with socket.create_connection((node.address, node.port), SECONDS) as connection:
        begun, sent = time.perf_counter(), clock()
        _write_line(connection, {"nonce": node.nonce, "challenge": challenge})
        reply = _read_line(connection)
        taken = time.perf_counter() - begun
    if (reply.get("rank"), reply.get("echo")) != (node.rank, challenge):
        raise ValueError("something else answers there")
    return Answer(taken, float(reply["time"]) - (sent + taken / 2))


def _read_line(connection: socket.socket) -> dict[str, Any]:
    """Read a line of JSON. Raises OSError for a line that does not come in time, ValueError for one that is too long or
    no JSON mapping."""
    deadline, read = time.monotonic() + SECONDS, b""
    while not read.endswith(b"\n"):
        connection.settimeout(max(0.01, deadline - time.monotonic()))
        more = connection.recv(LINE)
        if not more:
            raise ConnectionError("hung up without an answer")
        read += more
        if len(read) > LINE:
            raise ValueError("says too much")
    value = json.loads(read)
    if not isinstance(value, dict):
        raise ValueError("says no JSON mapping")
    return value


def _write_line(connection: socket.socket, value: dict[str, Any]) -> None:
    connection.settimeout(SECONDS)
    connection.sendall(json.dumps(value).encode() + b"\n")


def reach_findings(own: Node, others: list[Node]) -> Iterator[Finding]:
    """Call each of the other nodes; they check the way back. gloo and NCCL connect every pair."""
    with ThreadPoolExecutor(AT_ONCE) as pool:
        for findings in pool.map(lambda other: _reach(own, other), others):
            yield from findings


def _reach(own: Node, other: Node) -> list[Finding]:
    name = f"reach node {other.rank}"
    if other.address is None or other.port is None:
        return [fail(name, f"{other} could not listen at all, so {own} cannot reach it", "see that node's own table")]
    where = f"{other.address}:{other.port}"
    try:
        answer = call(other)
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or str(error) or type(error).__name__
        remedy = f"open the ports between the nodes in the firewall, or {WITH_INTERFACE}"
        return [fail(name, f"{own} cannot reach {other} at {where}: {why}", remedy)]
    reached = ok(name, f"{other} answers at {where} in {answer.seconds * 1000:.1f} ms")
    return [reached, clock_finding(f"clock of node {other.rank}", f"{other.host} is", answer.skew)]
