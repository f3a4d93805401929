"""Connections: both sides prove that they know the secret, and nothing that was changed or sent again is taken."""

import socket
import threading
from collections.abc import Callable
from typing import Any

import pytest

from scaleup.generator.wire import Channel, ConnectionLost, greet_engine, greet_policy

SECRET = b"\x01" * 32


def connected(engine_secret: bytes = SECRET, between: Callable[[bytes], bytes] | None = None) -> tuple[Any, Any]:
    """The policy's and the engine's channel, or what each raised."""
    ours, theirs = socket.socketpair()
    ours.settimeout(5)
    theirs.settimeout(5)
    found: list[Any] = [None]

    def engine() -> None:
        try:
            found[0] = greet_policy(theirs, engine_secret)
        except ConnectionLost as error:
            found[0] = error

    thread = threading.Thread(target=engine)
    thread.start()
    policy: Any
    try:
        policy = greet_engine(ours, SECRET)
    except ConnectionLost as error:
        policy = error
        ours.close()
    thread.join()
    return policy, found[0]


def test_messages_come_as_they_were_sent() -> None:
    policy, engine = connected()
    for body in (b"", b"x" * 100_000):
        sender = threading.Thread(target=policy.send, args=({"kind": "draw", "n": 3}, body))
        sender.start()
        assert engine.receive(5) == ({"kind": "draw", "n": 3}, body)
        sender.join()
    engine.send({"kind": "drawn"}, b"abc")
    assert policy.receive(5) == ({"kind": "drawn"}, b"abc")


def test_who_does_not_know_the_secret_is_refused_on_both_sides() -> None:
    policy, engine = connected(b"\x02" * 32)
    assert isinstance(policy, ConnectionLost) and "does not know this run's secret" in str(policy)
    assert isinstance(engine, ConnectionLost)


def pair(key: bytes = SECRET) -> tuple[socket.socket, socket.socket, Channel, Channel]:
    ours, theirs = socket.socketpair()
    return ours, theirs, Channel(ours, key, b"policy", b"engine"), Channel(theirs, key, b"engine", b"policy")


@pytest.mark.parametrize("place", [5, 20, -1])
def test_a_message_that_was_changed_is_not_taken(place: int) -> None:
    """Its length, its MAC or its body."""
    ours, theirs, policy, _ = pair()
    policy.send({"a": 1}, b"body")
    raw = bytearray(theirs.recv(1000))
    raw[place] ^= 1
    back, forth = socket.socketpair()
    back.sendall(bytes(raw))
    back.shutdown(socket.SHUT_WR)
    with pytest.raises(ConnectionLost, match=r"not signed|too large|gone"):
        Channel(forth, SECRET, b"engine", b"policy").receive(5)
    ours.close()


def test_a_message_that_comes_again_or_comes_back_is_not_taken() -> None:
    _, theirs, policy, _ = pair()
    policy.send({"a": 1})
    raw = theirs.recv(1000)
    back, forth = socket.socketpair()
    back.sendall(raw + raw)
    engine = Channel(forth, SECRET, b"engine", b"policy")
    assert engine.receive(5) == ({"a": 1}, b"")
    with pytest.raises(ConnectionLost, match="not signed"):
        engine.receive(5)
    back, forth = socket.socketpair()
    back.sendall(raw)
    with pytest.raises(ConnectionLost, match="not signed"):
        Channel(forth, SECRET, b"policy", b"engine").receive(5)


def test_a_side_that_is_gone_or_silent_is_told_of() -> None:
    _, _, policy, engine = pair()
    with pytest.raises(ConnectionLost, match="gives no answer"):
        policy.receive(0.05)
    engine.close()
    with pytest.raises(ConnectionLost, match="gone"):
        policy.receive(5)
