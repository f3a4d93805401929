"""This module is the policy's end of a generator: it listens for an engine, asks it for responses, and outlives it.

A request holds all that its answer depends on, the weights' version among it. So when an engine dies, hangs or is
started with another size, the next one is asked again, and nothing else changes."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from scaleup.errors import ScaleupError
from scaleup.generator.messages import PROTOCOL, Answer, Request
from scaleup.generator.wire import HELLO_SECONDS, Channel, ConnectionLost, Silent, greet_engine

CLOSE_SECONDS = 5.0
ACCEPT_SECONDS = 0.5


@dataclass
class EngineClient:
    """Asks an engine, of which rank 0 of a policy has one; in a thread of its own, in order."""

    address: str
    """Is where it listens, and on this address only."""
    port: int
    secret: str = field(repr=False)
    """Is this run's own, in hexadecimal."""
    timeout_seconds: float = 120.0
    """Bounds the time between two signs of life of an engine that draws."""
    reconnect_seconds: float = 600.0
    """Bounds how long a request waits for an engine where there is none."""
    on_lost: Callable[[str], object] = lambda why: None
    """Is called with the reason when an engine that is there says nothing: it is to be ended."""
    on_found: Callable[[], object] = lambda: None
    """Is called when another one has come."""

    def __post_init__(self) -> None:
        """Open the port. Raises ScaleupError if it cannot be opened."""
        family = socket.getaddrinfo(self.address, self.port, type=socket.SOCK_STREAM)[0][0]
        try:
            self._listener = socket.create_server((self.address, self.port), family=family)
        except OSError as error:
            what = f"the policy cannot listen on {self.address}:{self.port}: {error.strerror}"
            raise ScaleupError.of("generator", what, "start the run again; it takes another port") from error
        self.port = self._listener.getsockname()[1]
        self._listener.settimeout(ACCEPT_SECONDS)
        self._thread = ThreadPoolExecutor(1, "generator")
        self._channel: Channel | None = None
        self._was_lost = self._is_closed = self._is_drawing = False
        self.done = 0
        """Counts the responses of the current request that are drawn."""

    def submit(self, request: Request) -> Future[Answer]:
        """Ask for responses. The result raises ScaleupError: for what the engine raised, and where there is none."""
        return self._thread.submit(self._asked, request)

    def close(self) -> None:
        """Tell the engine to end, and wait for it; one that draws is left instead. It never raises: one that is gone
        need not be told."""
        self._is_closed, channel = True, self._channel
        if channel is not None and self._is_drawing:
            channel.close()
        self._thread.shutdown(wait=True, cancel_futures=True)
        if channel is not None and self._channel is channel:
            with suppress(ConnectionLost):
                channel.send({"kind": "close"})
                channel.receive(CLOSE_SECONDS)
            channel.close()
        self._listener.close()

    def _asked(self, request: Request) -> Answer:
        since = time.monotonic()
        while True:
            self.done = 0
            channel = self._connected(since)
            try:
                self._is_drawing = True
                return self._answer(channel, request)
            except ConnectionLost as error:
                channel.close()
                self._channel, self._was_lost, since = None, True, time.monotonic()
                if self._is_closed:
                    raise ScaleupError.of("generator", "was left while it drew") from error
                print(f"generator: {error}; waiting for another, {self.reconnect_seconds:g} s at most", flush=True)
                if isinstance(error, Silent):  # the launcher sees by itself that one has ended
                    self.on_lost(str(error))
            finally:
                self._is_drawing = False

    def _connected(self, since: float) -> Channel:
        while self._channel is None:
            if self._is_closed or time.monotonic() - since > self.reconnect_seconds:
                what = f"the policy waited {self.reconnect_seconds:g} s for a generator, and none came"
                raise ScaleupError.of("generator.reconnect_seconds", what, "see the generator's log, or wait longer")
            with suppress(TimeoutError):
                connection, _ = self._listener.accept()
                connection.settimeout(HELLO_SECONDS)
                try:
                    self._channel = greet_engine(connection, bytes.fromhex(self.secret))
                except ConnectionLost as error:
                    connection.close()
                    print(f"generator: {error}", flush=True)
        if self._was_lost:
            self._was_lost = False
            self.on_found()
        return self._channel

    def _answer(self, channel: Channel, request: Request) -> Answer:
        channel.send(*request.packed())
        head, body = channel.receive(self.timeout_seconds)
        while head["kind"] == "drawing":
            self.done = head["done"]
            head, body = channel.receive(self.timeout_seconds)
        if head["kind"] == "failed":
            raise ScaleupError.of("generator", head["error"], "the generator's log has the traceback")
        return _checked(Answer.unpacked(head, body), request)


def _checked(answer: Answer, request: Request) -> Answer:
    """Return an answer that is one to the request. Raises ScaleupError for any other."""
    lengths: Any = [len(row) for row in answer.tokens]
    fits = all(0 < length <= limit for length, limit in zip(lengths, request.limits, strict=False))
    if len(lengths) != len(request.prompts) or not fits:
        what = f"answered {len(request.prompts)} prompts with {len(lengths)} responses, or ones of other lengths"
        raise ScaleupError.of("generator", what, f"let it be of this version (protocol {PROTOCOL})")
    return answer
