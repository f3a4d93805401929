"""This module sends messages between the policy's and the reward model's process groups: signed frames, over a gloo
group of both. There is no pickle: texts travel as JSON, scores as float64."""

from __future__ import annotations

import hashlib
import hmac
import json
import struct
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from torch.distributed import ProcessGroupGloo

from scaleup.bridge.store import (
    CONNECT_SECONDS,
    PROTOCOL,
    BridgeLost,
    BridgePlace,
    BridgeStore,
    foreign,
    own_address,
)
from scaleup.errors import Problem, ScaleupError

MAX_BYTES = 64 * 2**20
"""Bounds the bytes of one request."""
REQUEST, CLOSE, SCORES, FAILURE = range(1, 5)
_HEADER = struct.Struct("<IIQQQ32s")
"""Packs protocol, kind, sequence, count, length, MAC."""
_PROBLEM_BYTES = 8192
"""Is room for an error in every answer: its receiver must know the size of an answer beforehand."""
_PROBLEM_TEXT = 300
_FOREVER = timedelta(days=365)
_HEADER_TAG, _BODY_TAG, _ANSWER_TAG = 11, 12, 13


@dataclass(frozen=True)
class Frame:
    """Holds one message: a request, an answer, or the request to close."""

    kind: int
    sequence: int
    count: int
    """Counts the texts of a request, the scores of an answer."""
    body: bytes = b""


class Link:
    """Connects one generation of the third process group: the policy's ranks first, then the reward model's.

    Torch's gloo moves the bytes in threads of its own. A wait that times out breaks the whole group, so nothing is ever
    polled: waits without a limit are in a thread of their own. Every method raises BridgeLost."""

    def __init__(
        self, store: BridgeStore, place: BridgePlace, generation: int, key: bytes, rank: int, size: int
    ) -> None:
        self.rank, self.size, self._key = rank, size, key
        gloo: Any = ProcessGroupGloo  # torch has no types for it
        options = gloo._Options()
        options._devices = [gloo.create_device(hostname=own_address(place))]
        options._timeout = timedelta(seconds=CONNECT_SECONDS)
        options._threads = 2
        try:
            self._group = gloo(store.prefixed(f"g{generation}/gloo"), rank, size, options)
        except RuntimeError as error:
            raise BridgeLost(f"the groups could not connect: {_short(error)}") from error

    def send_request(self, frame: Frame, server: int) -> Pending:
        """Sends a request to rank `server`; returns at once."""
        answer = _buffer(bytes(_answer_bytes(frame.count)))
        parts = [_buffer(self._header(frame, self.rank, server)), _buffer(frame.body)]
        try:
            coming = self._group.recv([answer], server, _ANSWER_TAG)
            works = [self._group.send([parts[0]], server, _HEADER_TAG)]
            if frame.body:
                works.append(self._group.send([parts[1]], server, _BODY_TAG))
        except RuntimeError as error:
            raise BridgeLost(f"the reward group is gone: {_short(error)}") from error
        return Pending(server, frame.sequence, answer, coming, (parts, works))

    def wait_for_answer(self, pending: Pending, seconds: float) -> Frame:
        """Waits for the answer and returns it. Raises BridgeLost if none comes within `seconds`, and ScaleupError for
        one that is not from the reward group."""
        try:
            pending.coming.wait(timedelta(seconds=seconds))
        except RuntimeError as error:
            hung = "Timed out" in str(error)
            raise BridgeLost("the reward group gives no answer" if hung else "the reward group is gone") from error
        data = pending.answer.numpy().tobytes()
        frame = self._opened(data[: _HEADER.size], lambda size: data[_HEADER.size :][:size], pending.server)
        if frame.sequence != pending.sequence:
            raise foreign(f"the reward group answered request {frame.sequence}, not {pending.sequence}")
        return frame

    def next_request(self) -> tuple[Frame, int]:
        """Waits, without a limit, for the next request; returns it and the rank that sent it.

        Raises ScaleupError for a message that is not signed or too large."""
        header = _buffer(bytes(_HEADER.size))
        try:
            work = self._group.recv_anysource([header], _HEADER_TAG)
            work.wait(_FOREVER)
            source = work._source_rank()
        except RuntimeError as error:
            raise BridgeLost(f"the policy is gone: {_short(error)}") from error
        return self._opened(header.numpy().tobytes(), lambda size: self._body(size, source), source), source

    def send_answer(self, frame: Frame, source: int, num_texts: int) -> None:
        """Sends an answer to rank `source`. `num_texts` of the request determines the size that the policy expects."""
        data = self._header(frame, self.rank, source) + frame.body
        try:
            sent = self._group.send([_buffer(data.ljust(_answer_bytes(num_texts), b"\0"))], source, _ANSWER_TAG)
            sent.wait(timedelta(seconds=CONNECT_SECONDS))
        except RuntimeError as error:
            raise BridgeLost(f"the policy does not take an answer: {_short(error)}") from error

    def _body(self, size: int, source: int) -> bytes:
        body = _buffer(bytes(size))
        try:
            self._group.recv([body], source, _BODY_TAG).wait(_FOREVER)
        except RuntimeError as error:
            raise BridgeLost(f"the policy is gone: {_short(error)}") from error
        return body.numpy().tobytes()

    def _header(self, frame: Frame, sender: int, receiver: int) -> bytes:
        fields = (PROTOCOL, frame.kind, frame.sequence, frame.count, len(frame.body))
        return _HEADER.pack(*fields, self._mac(fields, sender, receiver, frame.body))

    def _opened(self, header: bytes, read_body: Callable[[int], bytes], sender: int) -> Frame:
        *fields, mac = _HEADER.unpack(header)
        protocol, kind, sequence, count, length = fields
        if protocol != PROTOCOL:
            raise foreign(f"a message of protocol {protocol} came; this is protocol {PROTOCOL}")
        if length > MAX_BYTES:
            raise foreign(f"a message of {length} bytes came; at most {MAX_BYTES} are taken")
        body = read_body(length) if length else b""
        if not hmac.compare_digest(mac, self._mac(tuple(fields), sender, self.rank, body)):
            raise foreign("a message came that is not signed with this run's secret")
        return Frame(kind, sequence, count, body)

    def _mac(self, fields: tuple[int, ...], sender: int, receiver: int, body: bytes) -> bytes:
        head = struct.pack("<7Q", sender, receiver, *fields)
        return hmac.new(self._key, head + body, hashlib.sha256).digest()


@dataclass(frozen=True)
class Pending:
    """Holds a request that has not been answered, with the receive that waits for its answer."""

    server: int
    sequence: int
    answer: torch.Tensor
    coming: Any
    kept: Any
    """Keeps alive what gloo still sends from."""


def scores_frame(sequence: int, scores: list[float]) -> Frame:
    return Frame(SCORES, sequence, len(scores), struct.pack(f"<{len(scores)}d", *scores))


def scores_of(frame: Frame) -> list[float]:
    return list(struct.unpack(f"<{frame.count}d", frame.body))


def failure_frame(sequence: int, error: ScaleupError) -> Frame:
    """Returns an error as an answer, cut to what fits into an answer to any request."""
    fields = [[text[:_PROBLEM_TEXT] for text in vars(problem).values()] for problem in error.problems[:2]]
    return Frame(FAILURE, sequence, 0, json.dumps(fields, ensure_ascii=False).encode(errors="surrogatepass"))


def failure_of(frame: Frame) -> ScaleupError:
    return ScaleupError([Problem(*fields) for fields in json.loads(frame.body)])


def _answer_bytes(count: int) -> int:
    return _HEADER.size + max(count * struct.calcsize("<d"), _PROBLEM_BYTES)


def _buffer(data: bytes) -> torch.Tensor:
    return torch.frombuffer(bytearray(data), dtype=torch.uint8) if data else torch.empty(0, dtype=torch.uint8)


def _short(error: Exception) -> str:
    """Returns the message of a gloo error, without its source line."""
    return str(error).split("] ", 1)[-1].split(". ", 1)[0][:200]
