"""This module is the policy's end of the bridge: it sends texts to the reward model's process group, returns their
scores, and outlives it.

Why a third group: Accelerate and DeepSpeed use the default process group for everything, so policy and reward model are
two ordinary jobs, connected by a gloo group that is neither's default (docs/design/bridge.md)."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from scaleup.bridge.store import (
    CONNECT_SECONDS,
    PROTOCOL,
    BridgeLost,
    BridgePlace,
    BridgeStore,
    foreign,
    session_key,
    signed,
    verified,
)
from scaleup.bridge.wire import (
    CLOSE,
    FAILURE,
    MAX_BYTES,
    REQUEST,
    Frame,
    Link,
    Pending,
    failure_of,
    scores_of,
)
from scaleup.distributed.runtime import Runtime
from scaleup.errors import ScaleupError

_POLL_SECONDS = 0.1
_MESSAGE_SECONDS = 15.0
_CLOSE_SECONDS = 5.0


class StopWhileWaiting(Exception):
    """Tells that a signal requested a stop while the policy waited for a reward group. All ranks raise it together."""


@dataclass
class _Request:
    frame: Frame
    sent: float = 0.0
    """Is the time of sending in monotonic seconds."""
    pending: Pending | None = None
    scores: list[float] | None = None


class BridgeClient:
    """Sends items to the reward group and collects their scores. Every rank of the policy has one and makes the same
    calls, each with items of its own.

    All ranks decide together that the bridge is lost: they open the next generation, wait for a reward group (which may
    have another size), and send again what has not been answered. Scoring is pure, so that changes nothing."""

    def __init__(
        self,
        runtime: Runtime,
        place: BridgePlace,
        model: str,
        timeout_seconds: float,
        reconnect_seconds: float,
        on_lost: Callable[[str], object] | None = None,
        on_found: Callable[[], object] | None = None,
    ) -> None:
        """Opens the store, so that a reward group may join. `model`: the reward model that must score; a reward group
        with another one is refused. On rank 0 `on_lost` is called with the reason when the reward group is lost, and
        `on_found` when another one has joined.

        Raises ScaleupError if the port cannot be opened."""
        assert runtime.world == place.policy_size
        self._runtime = runtime
        self._place = place
        self._model = model
        self._timeout = timeout_seconds
        self._reconnect = reconnect_seconds
        self._on_lost = on_lost
        self._on_found = on_found
        self._generation = 0
        self._link: Link | None = None
        self._servers: range = range(0)
        self._requests: list[_Request] = []
        self._sequence = 0
        self._last_answer = 0.0
        self._problem: ScaleupError | None = None
        self._store = self._open_store()
        self._open_next()

    def connect(self) -> None:
        """Waits for a reward group, if none has joined. All ranks must call it; the first `submit` does it too.

        Raises ScaleupError if none joins within `reconnect_seconds` or it is not this run's, and StopWhileWaiting."""
        began = time.monotonic()
        while self._link is None:
            self._await_hello(began)
            problem: ScaleupError | BridgeLost | None = None
            try:
                self._link = self._linked()
            except (ScaleupError, BridgeLost) as error:
                problem = error
            if self._is_lost(problem):
                self._link = None
                self._open_next()

    def submit(self, items: Sequence[Any]) -> None:
        """Sends items (anything that JSON can hold) to be scored. Returns at once when there is a reward group;
        `collect` raises what goes wrong, on all ranks."""
        self.connect()
        body = json.dumps(list(items), ensure_ascii=False).encode(errors="surrogatepass")  # loads() takes them
        if len(body) > MAX_BYTES:
            what = f"{len(items)} texts are a request of {len(body)} bytes; at most {MAX_BYTES} are taken"
            self._problem = ScaleupError.of("reward bridge", what, "score fewer or shorter texts at a time")
            return
        self._sequence += 1
        request = _Request(Frame(REQUEST, self._sequence, len(items), body))
        self._requests.append(request)
        self._send(request)

    def collect(self) -> list[float]:
        """Waits for the scores of all items since the last call, and returns them in order.

        Raises on all ranks: ScaleupError for what the reward model raised, for an answer that is not this run's and for
        no reward group within `reconnect_seconds`; StopWhileWaiting."""
        while True:
            problem = self._problem or self._receive()
            if not self._is_lost(problem):
                break
            self._reconnected()
        scores = [score for request in self._requests for score in request.scores or []]
        self._requests.clear()
        return scores

    def close(self) -> None:
        """Tells the reward group to end, with exit code 0. It never raises: a group that is gone need not be told."""
        try:
            if self._runtime.is_main:
                self._store.write("closed", "")
                pending_closes = (
                    [self._link.send_request(Frame(CLOSE, 0, 0), server) for server in self._servers]
                    if self._link
                    else []
                )
                for pending in pending_closes:
                    assert self._link
                    self._link.wait_for_answer(pending, _CLOSE_SECONDS)
        except (BridgeLost, ScaleupError) as error:
            print(f"reward bridge: closed without an answer: {error}", flush=True)

    def _open_store(self) -> BridgeStore:
        store, problem = None, None
        if self._runtime.is_main:
            try:
                store = BridgeStore.host(self._place)
            except ScaleupError as error:
                problem = error
        if self._runtime.any(problem is not None):
            raise problem or ScaleupError.of("reward bridge", "rank 0 of the policy could not open it", "see its log")
        return store or BridgeStore.join(self._place, CONNECT_SECONDS)

    def _open_next(self) -> None:
        self._generation += 1
        if self._runtime.is_main:
            topic = f"g{self._generation}/offer"
            offer = {"protocol": PROTOCOL, "nonce": secrets.token_hex(16), "policy_size": self._place.policy_size}
            self._store.write(topic, signed(self._place.key, topic, offer))
            self._store.open_next()

    def _await_hello(self, began: float) -> None:
        last_message = began
        while True:
            now = time.monotonic()
            is_main = self._runtime.is_main
            joined = is_main and self._store.read(f"g{self._generation}/hello") is not None
            late = is_main and now - began > self._reconnect
            any_joined, too_late, stop = self._runtime.sum(joined, late, self._runtime.stop.requested)
            if any_joined:
                return
            if stop:
                raise StopWhileWaiting("stopped while waiting for the reward group")
            if too_late:
                what = f"the policy waited {self._reconnect:g} s for a reward group, and none came"
                where = f"{self._place.section}.reconnect_seconds"
                raise ScaleupError.of(where, what, "see the reward group's log, or wait longer")
            self._runtime.progress.report("waiting for the reward group", int(now - began), int(self._reconnect))
            if is_main and now - last_message > _MESSAGE_SECONDS:
                print(f"waiting for a reward group: {now - began:.0f} of {self._reconnect:g} s", flush=True)
                last_message = now
            time.sleep(_POLL_SECONDS)

    def _linked(self) -> Link:
        """Returns the connection to the group whose hello was read. Raises ScaleupError if it is not this run's, and
        BridgeLost."""
        prefix = f"g{self._generation}/"
        offer, hello = (self._store.read(prefix + name) for name in ("offer", "hello"))
        assert offer is not None and hello is not None
        nonce = verified(self._place.key, prefix + "offer", offer)["nonce"]
        key = session_key(self._place, self._generation, nonce)
        group = verified(key, prefix + "hello", hello)
        if group["protocol"] != PROTOCOL:
            raise foreign(f"the reward group speaks protocol {group['protocol']}, the policy {PROTOCOL}")
        if group["model"] != self._model:
            what = f"the reward group scores with {group['model']}, and the policy is to be scored by {self._model}"
            raise ScaleupError.of(f"{self._place.section}.model", what, "start the reward group of this run")
        if self._runtime.is_main:
            self._store.write(prefix + "go", signed(key, prefix + "go", True))
        size = self._place.policy_size
        self._servers = range(size, size + (1 if group["mode"] == "sharded" else group["size"]))
        return Link(self._store, self._place, self._generation, key, self._runtime.rank, size + group["size"])

    def _send(self, request: _Request) -> None:
        assert self._link
        server = self._servers[self._runtime.rank % len(self._servers)]
        request.sent = time.monotonic()
        try:
            request.pending = self._link.send_request(request.frame, server)
        except BridgeLost:
            request.pending = None  # `collect` sees it

    def _receive(self) -> ScaleupError | BridgeLost | None:
        """Receives all answers that are still due; returns the error that prevents it, or None."""
        try:
            for request in self._requests:
                if request.scores is None:
                    request.scores = self._answer(request)
                    self._runtime.progress.enter_phase("waiting for scores")
        except (ScaleupError, BridgeLost) as problem:
            return problem
        return None

    def _answer(self, request: _Request) -> list[float]:
        if self._link is None or request.pending is None:
            raise BridgeLost("the reward group is gone")
        # a request behind others has its time from their answers on
        due = max(request.sent, self._last_answer) + self._timeout
        frame = self._link.wait_for_answer(request.pending, max(_POLL_SECONDS, due - time.monotonic()))
        self._last_answer = time.monotonic()
        if frame.kind == FAILURE:
            raise failure_of(frame)
        if frame.count != request.frame.count:
            raise foreign(f"{request.frame.count} texts were sent, and {frame.count} scores came back")
        return scores_of(frame)

    def _is_lost(self, problem: ScaleupError | BridgeLost | None) -> bool:
        """Returns whether any rank lost the bridge: a decision of all ranks. Raises ScaleupError on all if one rank has
        one."""
        wrong, lost = self._runtime.sum(isinstance(problem, ScaleupError), isinstance(problem, BridgeLost))
        if wrong:
            elsewhere = ScaleupError.of("reward bridge", "another process of the policy got no scores", "see its log")
            raise problem if isinstance(problem, ScaleupError) else elsewhere
        if lost:
            reason = problem or "another process of the policy lost the reward group"
            print(f"reward bridge: {reason}; waiting for another, {self._reconnect:g} s at most", flush=True)
            if self._on_lost and self._runtime.is_main:
                self._on_lost(str(reason))
        return lost > 0

    def _reconnected(self) -> None:
        self._link = None
        for request in self._requests:
            request.pending = None
        self._open_next()
        self.connect()
        if self._on_found and self._runtime.is_main:
            self._on_found()
        for request in self._requests:
            if request.scores is None:
                self._send(request)
