"""This module is the reward model's end of the bridge: it joins a generation that the policy has opened, takes
requests, and answers them."""

from __future__ import annotations

import os
import queue
import threading
import time

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
from scaleup.bridge.wire import CLOSE, Frame, Link, failure_frame, scores_frame
from scaleup.distributed.runtime import Runtime
from scaleup.errors import ScaleupError

_POLL_SECONDS = 0.2
_GRACE_SECONDS = 3.0
"""Bounds the time between knowing that the policy is gone and ending this process if it does not end by itself."""
_MAX_SILENCE = 60
"""Bounds the seconds without an answer of the policy's store, after which it, or the network between, counts as gone.
They are counted one by one: time in which both processes were suspended proves nothing."""


class BridgeServer:
    """Takes requests of one generation and answers them. Every rank of the reward group has one. A group that the
    policy went on without ends, and a new group joins the next generation."""

    def __init__(self, runtime: Runtime, place: BridgePlace, model: str, sharded: bool) -> None:
        self._runtime = runtime
        self._place = place
        self._hello = {
            "protocol": PROTOCOL,
            "size": runtime.world,
            "mode": "sharded" if sharded else "replicated",
            "model": model,
        }
        self._receives = runtime.rank == 0 or not sharded
        self._arrived: queue.Queue[tuple[Frame, int] | Exception] = queue.Queue()
        self._newest: dict[int, int] = {}
        self._silence = 0
        self._counted = 0.0
        self._watch: _Watch | None = None

    def join(self, seconds: float) -> bool:
        """Waits at most `seconds` for the policy to open its store, then for a generation, as long as the policy lives.
        All ranks must call it. Returns False if the policy closed the bridge, or a signal requests a stop.

        Raises BridgeLost if the policy is gone, ScaleupError if it is not this run's."""
        self._runtime.progress.report("waiting for the policy")
        try:
            store = BridgeStore.join(self._place, seconds, lambda: self._runtime.stop.requested)
        except BridgeLost:
            if self._runtime.stop.requested:
                return False
            raise
        generation = self._claimed(store)
        prefix, go = f"g{generation}/", None
        while generation and (go := store.read(prefix + "go")) is None:
            if store.read("closed") is not None or self._runtime.stop.requested:
                return False
            if store.generation() > generation:
                raise BridgeLost("the policy went on without this reward group")
            time.sleep(_POLL_SECONDS)
        if not generation or go is None:
            return False
        key = self._key(store, generation)
        verified(key, prefix + "go", go)
        rank, size = self._place.policy_size + self._runtime.rank, self._place.policy_size + self._runtime.world
        self._link = Link(store, self._place, generation, key, rank, size)
        self._watch = _Watch(BridgeStore.join(self._place, CONNECT_SECONDS), generation)
        self._watch.start()
        if self._receives:
            threading.Thread(target=self._receive, name="bridge", daemon=True).start()
        return True

    def next(self, seconds: float) -> tuple[Frame, int] | None:
        """Returns the next request and the rank that sent it, or None if none came within `seconds`. Ranks that do not
        receive only wait.

        Raises BridgeLost, and ScaleupError for a message that is not the policy's."""
        try:
            arrived = self._arrived.get(timeout=seconds)
        except queue.Empty:
            self.check()
            return None
        if isinstance(arrived, Exception):
            raise arrived
        frame, source = arrived
        if frame.kind != CLOSE:
            if frame.sequence <= self._newest.get(source, 0):
                raise foreign(f"request {frame.sequence} came twice or too late")
            self._newest[source] = frame.sequence
        return arrived

    def check(self) -> None:
        """Raises BridgeLost if the watch has noticed that the policy is gone."""
        assert self._watch
        if self._watch.lost:
            raise BridgeLost(self._watch.lost)
        now = time.monotonic()
        if now - self._counted < 1.0:
            return
        self._counted = now
        self._silence = 0 if self._watch.answered else self._silence + 1
        self._watch.answered = False
        if self._silence > _MAX_SILENCE:
            raise BridgeLost("the policy is gone: its store has been silent for too long")

    def answer(self, request: tuple[Frame, int], result: list[float] | ScaleupError) -> None:
        """Sends the scores of a request, or the error that scoring raised. Raises BridgeLost."""
        frame, source = request
        if isinstance(result, ScaleupError):
            answer = failure_frame(frame.sequence, result)
        else:
            answer = scores_frame(frame.sequence, result)
        self._link.send_answer(answer, source, frame.count)

    def close(self) -> None:
        if self._watch:
            self._watch.ended.set()

    def _claimed(self, store: BridgeStore) -> int:
        """Returns the generation that rank 0 claimed for this group; 0 if there will be none."""
        tried, claimed, problem = 0, 0, None
        while True:
            over = store.read("closed") is not None
            if self._runtime.rank == 0 and not over:
                generation = store.generation()
                if generation > tried:
                    tried = generation
                    try:
                        claimed = generation * self._claim(store, generation)
                    except ScaleupError as error:
                        problem = error
            ours, wrong, stop = self._runtime.sum(claimed, problem is not None, over or self._runtime.stop.requested)
            if wrong:
                raise problem or foreign("rank 0 of the reward group met a policy of another run")
            if ours or stop:
                return int(ours)
            time.sleep(_POLL_SECONDS)

    def _claim(self, store: BridgeStore, generation: int) -> bool:
        """Claims a generation; returns whether this group has it. Raises ScaleupError, before it claims anything, when
        the policy is not this run's."""
        key, topic = self._key(store, generation), f"g{generation}/hello"
        if not store.claim(generation):
            return False  # another reward group has it; the policy may open a next one
        store.write(topic, signed(key, topic, self._hello))
        return True

    def _key(self, store: BridgeStore, generation: int) -> bytes:
        topic = f"g{generation}/offer"
        offer = verified(self._place.key, topic, store.read(topic) or b"")
        for name, ours in {"protocol": PROTOCOL, "policy_size": self._place.policy_size}.items():
            if offer[name] != ours:
                raise foreign(f"{name} is {offer[name]} for the policy, and {ours} for the reward group")
        return session_key(self._place, generation, offer["nonce"])

    def _receive(self) -> None:
        """Receives requests in a thread of its own: the main thread must react to signals and to the watch."""
        try:
            while True:
                arrived = self._link.next_request()
                self._arrived.put(arrived)
                if arrived[0].kind == CLOSE:
                    return
        except (BridgeLost, ScaleupError) as error:
            self._arrived.put(error)


class _Watch(threading.Thread):
    """Watches whether the policy is gone or went on without this group, also while the main thread is in a forward pass
    or a collective that never returns; then ends the process."""

    def __init__(self, store: BridgeStore, generation: int) -> None:
        super().__init__(name="bridge-watch", daemon=True)
        self._store = store
        self._generation = generation
        self.lost = ""
        self.answered = True
        self.ended = threading.Event()

    def run(self) -> None:
        while not self.ended.wait(1.0):
            try:
                if self._store.generation() > self._generation:
                    self.lost = "the policy went on without this reward group"
                self.answered = True
            except BridgeLost as error:
                self.lost = str(error)
            if self.lost:
                if not self.ended.wait(_GRACE_SECONDS):
                    print(f"reward bridge: {self.lost}; this process ends", flush=True)
                    os._exit(1)
                return
