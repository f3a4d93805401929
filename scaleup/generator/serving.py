"""This module answers a policy's requests: it joins the policy, has responses drawn, and gives signs of life meanwhile.
Like all of this package that the engine imports, it needs the standard library alone."""

from __future__ import annotations

import socket
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from threading import Event, Thread
from typing import Protocol

from scaleup.artifacts.bridge_file import BridgeFile
from scaleup.artifacts.timeline import UNNOTED, Timeline
from scaleup.distributed.heartbeat import Heartbeat
from scaleup.generator.messages import PROTOCOL, Answer, Request
from scaleup.generator.wire import Channel, ConnectionLost, greet_policy

JOIN_SECONDS = 1800.0
"""Bounds how long an engine waits for the policy to listen."""
LOAD_SECONDS = 1800.0
"""Bounds how long weights may take to be loaded."""
TELL_SECONDS = 1.0
"""Counts the seconds between two signs of life while responses are drawn."""

Tell = Callable[[int], None]
"""Is called now and then with the number of responses that are done."""


class Drawer(Protocol):
    """Draws responses by the weights that a request names."""

    def draw(self, request: Request, tell: Tell) -> Answer:
        """Return a response to each prompt. What it raises is the policy's to show."""


def serve(channel: Channel, drawer: Drawer, heartbeat: Heartbeat, timeline: Timeline = UNNOTED) -> None:
    """Answer requests until the policy says that it needs no more. Raises ConnectionLost if it is gone."""
    while True:
        heartbeat.enter_phase("waiting for the policy")
        head, body = channel.receive()
        if head["kind"] == "close":
            channel.send({"kind": "closed"})
            return
        heartbeat.enter_phase("drawing responses")
        try:
            if head["protocol"] != PROTOCOL:
                raise ValueError(f"the policy speaks protocol {head['protocol']}, the generator {PROTOCOL}")
            with timeline.span("generation"):
                answer = drawer.draw(Request.unpacked(head, body), _teller(channel, heartbeat))
        except ConnectionLost:
            raise
        except Exception as error:
            traceback.print_exc()
            channel.send({"kind": "failed", "error": f"{type(error).__name__}: {error}"[:2000]})
            continue
        channel.send(*answer.packed())


def _teller(channel: Channel, heartbeat: Heartbeat) -> Tell:
    last = 0.0

    def tell(done: int) -> None:
        nonlocal last
        heartbeat.enter_phase("drawing responses")
        if time.monotonic() - last >= TELL_SECONDS:
            channel.send({"kind": "drawing", "done": done})
            last = time.monotonic()

    return tell


@contextmanager
def alive(tell: Tell, seconds: float = LOAD_SECONDS) -> Iterator[None]:
    """Gives signs of life meanwhile, from another thread, for so long at most: to load a large model takes minutes in
    one call, and one that hangs must show."""
    over = Event()

    def go_on() -> None:
        with suppress(ConnectionLost):
            until = time.monotonic() + seconds
            while not over.wait(TELL_SECONDS) and time.monotonic() < until:
                tell(0)

    thread = Thread(target=go_on, name="alive", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def join(place: BridgeFile, seconds: float = JOIN_SECONDS) -> Channel:
    """Return the connection to the policy once it listens and has use for an engine. Raises ConnectionLost if it does
    not listen within `seconds`, or is not this run's."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            connection = socket.create_connection((place.address, place.port), timeout=5)
            break
        except OSError as error:
            if time.monotonic() > deadline:
                at = f"{place.address}:{place.port}"
                raise ConnectionLost(f"no policy listened at {at} within {seconds:g} s: {error}") from error
            time.sleep(0.2)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.settimeout(None)  # the policy greets once it asks for something
    return greet_policy(connection, bytes.fromhex(place.secret))
