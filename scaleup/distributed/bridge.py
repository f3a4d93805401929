"""The policy's end of the bridge: asks the reward model's process group for scores, and outlives it.

Why a third group: Accelerate and DeepSpeed use the default process group for everything, so policy and reward model are
two ordinary jobs, and meet over a gloo group that is neither's default (docs/design/bridge.md)."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from scaleup.distributed.bridge_store import (
    CONNECT_SECONDS,
    PROTOCOL,
    BridgeLost,
    BridgePlace,
    Meeting,
    foreign,
    session_key,
    signed,
    verified,
)
from scaleup.distributed.bridge_wire import (
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
_TELL_SECONDS = 15.0
_CLOSE_SECONDS = 5.0


class StopWhileWaiting(Exception):
    """A signal asked for a stop while the policy waited for a reward group. All ranks raise it together."""


@dataclass
class _Request:
    frame: Frame
    sent: float = 0.0
    """When: monotonic seconds."""
    pending: Pending | None = None
    scores: list[float] | None = None


class BridgeClient:
    """Every rank of the policy has one and makes the same calls, each with items of its own.

    A lost bridge is a decision of all ranks: together they open the next generation, wait for a reward group (which
    may have another size), and ask again for what has not been answered. Scoring is pure, so that changes nothing."""

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
        """`model`: what must score; another one's reward group is refused. The reward group may come from now on.
        `on_lost` is called on rank 0, with the reason, when a group that was there is there no more, and `on_found`
        when another one has come.

        Raises ScaleupError when the port cannot be had."""
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
        self._meeting = self._meet()
        self._open_next()

    def connect(self) -> None:
        """Wait for a reward group, if there is none yet. All ranks together; the first `submit` does it too.

        Raises ScaleupError when none comes in `reconnect_seconds` or it is not this run's, and StopWhileWaiting."""
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
        """Ask for a score of each item (anything that JSON can hold). Returns at once when there is a reward group;
        what goes wrong is said by `collect`, on all ranks."""
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
        """The scores of all items since the last call, in order. Waits for them.

        Raises ScaleupError, on all ranks: what the reward model raised, an answer that is not this run's, or no reward
        group within `reconnect_seconds`. And StopWhileWaiting."""
        while True:
            problem = self._problem or self._receive()
            if not self._is_lost(problem):
                break
            self._reconnected()
        scores = [score for request in self._requests for score in request.scores or []]
        self._requests.clear()
        return scores

    def close(self) -> None:
        """Tell the reward group to end, with exit code 0. Never raises: whoever is gone by now need not be told."""
        try:
            if self._runtime.is_main:
                self._meeting.write("closed", "")
                asked = [self._link.ask(Frame(CLOSE, 0, 0), server) for server in self._servers] if self._link else []
                for pending in asked:
                    assert self._link
                    self._link.answer_to(pending, _CLOSE_SECONDS)
        except (BridgeLost, ScaleupError) as error:
            print(f"reward bridge: closed without an answer: {error}", flush=True)

    def _meet(self) -> Meeting:
        meeting, problem = None, None
        if self._runtime.is_main:
            try:
                meeting = Meeting.host(self._place)
            except ScaleupError as error:
                problem = error
        if self._runtime.any(problem is not None):
            raise problem or ScaleupError.of("reward bridge", "rank 0 of the policy could not open it", "see its log")
        return meeting or Meeting.join(self._place, CONNECT_SECONDS)

    def _open_next(self) -> None:
        self._generation += 1
        if self._runtime.is_main:
            topic = f"g{self._generation}/offer"
            offer = {"protocol": PROTOCOL, "nonce": secrets.token_hex(16), "policy_size": self._place.policy_size}
            self._meeting.write(topic, signed(self._place.key, topic, offer))
            self._meeting.open_next()

    def _await_hello(self, began: float) -> None:
        told = began
        while True:
            now = time.monotonic()
            is_main = self._runtime.is_main
            found = is_main and self._meeting.read(f"g{self._generation}/hello") is not None
            late = is_main and now - began > self._reconnect
            here, too_late, stop = self._runtime.sum(found, late, self._runtime.stop.requested)
            if here:
                return
            if stop:
                raise StopWhileWaiting("stopped while waiting for the reward group")
            if too_late:
                what = f"the policy waited {self._reconnect:g} s for a reward group, and none came"
                raise ScaleupError.of("reward.reconnect_seconds", what, "see the reward group's log, or wait longer")
            self._runtime.progress.report("waiting for the reward group", int(now - began), int(self._reconnect))
            if is_main and now - told > _TELL_SECONDS:
                print(f"waiting for a reward group: {now - began:.0f} of {self._reconnect:g} s", flush=True)
                told = now
            time.sleep(_POLL_SECONDS)

    def _linked(self) -> Link:
        """Raises ScaleupError when the reward group is not this run's, and BridgeLost."""
        prefix = f"g{self._generation}/"
        offer, hello = (self._meeting.read(prefix + name) for name in ("offer", "hello"))
        assert offer is not None and hello is not None
        nonce = verified(self._place.key, prefix + "offer", offer)["nonce"]
        key = session_key(self._place, self._generation, nonce)
        said = verified(key, prefix + "hello", hello)
        if said["protocol"] != PROTOCOL:
            raise foreign(f"the reward group speaks protocol {said['protocol']}, the policy {PROTOCOL}")
        if said["model"] != self._model:
            what = f"the reward group scores with {said['model']}, and the policy is to be scored by {self._model}"
            raise ScaleupError.of("reward.model", what, "start the reward group of this run")
        if self._runtime.is_main:
            self._meeting.write(prefix + "go", signed(key, prefix + "go", True))
        size = self._place.policy_size
        self._servers = range(size, size + (1 if said["mode"] == "sharded" else said["size"]))
        return Link(self._meeting, self._place, self._generation, key, self._runtime.rank, size + said["size"])

    def _send(self, request: _Request) -> None:
        assert self._link
        server = self._servers[self._runtime.rank % len(self._servers)]
        request.sent = time.monotonic()
        try:
            request.pending = self._link.ask(request.frame, server)
        except BridgeLost:
            request.pending = None  # `collect` finds it so

    def _receive(self) -> ScaleupError | BridgeLost | None:
        """All answers that are still due, or what is in the way."""
        try:
            for request in self._requests:
                if request.scores is None:
                    request.scores = self._answer(request)
                    self._runtime.progress.at("waiting for scores")
        except (ScaleupError, BridgeLost) as problem:
            return problem
        return None

    def _answer(self, request: _Request) -> list[float]:
        if self._link is None or request.pending is None:
            raise BridgeLost("the reward group is gone")
        # a request behind others has its time from their answers on
        due = max(request.sent, self._last_answer) + self._timeout
        frame = self._link.answer_to(request.pending, max(_POLL_SECONDS, due - time.monotonic()))
        self._last_answer = time.monotonic()
        if frame.kind == FAILURE:
            raise failure_of(frame)
        if frame.count != request.frame.count:
            raise foreign(f"{request.frame.count} texts were sent, and {frame.count} scores came back")
        return scores_of(frame)

    def _is_lost(self, problem: ScaleupError | BridgeLost | None) -> bool:
        """The decision of all ranks on what each met. Raises ScaleupError on all when one met that."""
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
