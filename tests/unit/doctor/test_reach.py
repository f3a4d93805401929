"""Nodes that call one another over real sockets on the loopback."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace

import pytest

from scaleup.doctor.board import Node
from scaleup.doctor.finding import Finding
from scaleup.doctor.reach import LINE, Clock, Listener, call, reach_findings

OWN = Node(0, "h0", "boot", "127.0.0.1", None, {})


@contextmanager
def listening(clock: Clock = time.time) -> Iterator[Node]:
    node = Node(1, "h1", "boot", "127.0.0.1", None, {})
    listener = Listener("127.0.0.1", 0, node.rank, node.nonce, clock)
    try:
        yield replace(node, port=listener.port)
    finally:
        listener.close()


def reach(other: Node) -> list[Finding]:
    return list(reach_findings(OWN, [other]))


def test_a_node_that_answers() -> None:
    with listening() as node:
        answer = call(node)
        assert 0 < answer.seconds < 5 and abs(answer.skew) < 1
        assert [(found.name, found.level) for found in reach(node)] == [
            ("reach node 1", "ok"),
            ("clock of node 1", "ok"),
        ]


@pytest.mark.parametrize(("ahead", "level"), [(10.0, "warn"), (-3600.0, "fail")])
def test_a_clock_that_goes_wrong(ahead: float, level: str) -> None:
    with listening(lambda: time.time() + ahead) as node:
        assert call(node).skew == pytest.approx(ahead, abs=1)
        found = reach(node)[1]
        assert found.level == level and ("ahead of" if ahead > 0 else "behind") in found.what


def test_a_node_that_does_not_answer_is_named_with_ours() -> None:
    with listening() as node:
        pass
    (found,) = reach(node)
    assert found.level == "fail" and "node 0 (h0, 127.0.0.1) cannot reach node 1 (h1, 127.0.0.1)" in found.what
    assert f"127.0.0.1:{node.port}: Connection refused" in found.what
    assert "firewall" in found.remedy and "parallel.interface" in found.remedy


def test_a_node_that_cannot_listen() -> None:
    (found,) = reach(Node(1, "h1", "boot", None, None, {}))
    assert found.level == "fail" and "could not listen" in found.what


def test_who_does_not_know_the_nonce_gets_no_answer() -> None:
    with listening() as node:
        (found,) = reach(replace(node, nonce="another"))
        assert found.level == "fail" and "hung up without an answer" in found.what
        assert call(node).seconds > 0, "the listener goes on"


def test_something_else_that_listens_there() -> None:
    with listening() as node:
        (found,) = reach(replace(node, rank=2))
    assert found.level == "fail" and "something else answers there" in found.what


def test_nonsense_does_not_end_the_listener() -> None:
    with listening() as node:
        for said in (
            b"GET / HTTP/1.1\r\n\r\n",
            b"[]\n",
            json.dumps({"nonce": node.nonce}).encode() + b"\n",
            b"x" * 3 * LINE,
        ):
            with socket.create_connection((node.address, node.port), 5) as connection:
                connection.settimeout(5)
                with suppress(ConnectionError):  # it may hang up on what it has not read
                    connection.sendall(said + b"\n")
                    assert connection.recv(100) == b""
        assert call(node).seconds > 0


def test_it_listens_on_one_address_alone_until_it_is_closed() -> None:
    with listening() as node:
        with pytest.raises(OSError):
            socket.create_connection(("127.0.0.2", node.port), 5)
        with pytest.raises(OSError):
            Listener("127.0.0.1", node.port, 2, "nonce")
    Listener("127.0.0.1", node.port, 2, "nonce").close()
