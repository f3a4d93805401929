"""What crosses the bridge between the policy's and the reward model's process groups: the store where they meet, a gloo
group over both, and signed frames. No pickle: texts travel as JSON, scores as float64."""

from __future__ import annotations

import hashlib
import hmac
import json
import socket
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from torch.distributed import PrefixStore, ProcessGroupGloo, TCPStore

from scaleup.errors import Problem, ScaleupError

PROTOCOL = 1
MAX_BYTES = 64 * 2**20
"""Of one request."""
CONNECT_SECONDS = 30.0
"""For what takes moments between two processes that are both alive."""
REQUEST, CLOSE, SCORES, FAILURE = range(1, 5)
_HEADER = struct.Struct("<IIQQQ32s")
"""Protocol, kind, sequence, count, length, MAC."""
_PROBLEM_BYTES = 8192
"""Room for an error in every answer: its receiver must know its size beforehand."""
_PROBLEM_TEXT = 300
_FOREVER = timedelta(days=365)
_HEADER_TAG, _BODY_TAG, _ANSWER_TAG = 11, 12, 13


class BridgeLost(Exception):
    """The other side died, hangs, or went on without us."""


@dataclass(frozen=True)
class BridgePlace:
    """Where the two groups meet. Both are given the same one."""

    address: str
    """Of the policy's rank 0; it listens on this address only."""
    port: int
    secret: str
    """Hexadecimal, of this run alone: whoever has it may ask for scores and give them."""
    policy_size: int

    @property
    def key(self) -> bytes:
        return bytes.fromhex(self.secret)

    def __repr__(self) -> str:
        return f"BridgePlace({self.address}:{self.port}, policy_size={self.policy_size})"  # secrets stay out of logs


@dataclass(frozen=True)
class Frame:
    kind: int
    sequence: int
    count: int
    """Texts of a request, scores of an answer."""
    body: bytes = b""


class Meeting:
    """The store at the policy's rank 0. Its keys are `generation`, a number, and under `g<number>/` what the two sides
    of that generation say to each other. Every method raises BridgeLost when the store is gone: so is the policy."""

    def __init__(self, store: TCPStore) -> None:
        self._store = store

    @classmethod
    def host(cls, place: BridgePlace) -> Meeting:
        """Raises ScaleupError when the port cannot be had."""
        family = socket.getaddrinfo(place.address, place.port, type=socket.SOCK_STREAM)[0][0]
        try:  # by itself TCPStore listens on all interfaces
            listener = socket.create_server((place.address, place.port), family=family)
        except OSError as error:
            what = f"the policy cannot listen on {place.address}:{place.port}: {error.strerror}"
            raise ScaleupError.of("reward bridge", what, "start the run again; it takes another port") from error
        seconds = timedelta(seconds=CONNECT_SECONDS)
        port, descriptor = listener.getsockname()[1], listener.detach()
        return cls(
            TCPStore(place.address, port, None, True, seconds, wait_for_workers=False, master_listen_fd=descriptor)
        )

    @classmethod
    def join(cls, place: BridgePlace, seconds: float, stopped: Callable[[], bool] = lambda: False) -> Meeting:
        """Wait so long for the store to be opened. Raises BridgeLost."""
        deadline = time.monotonic() + seconds
        while True:  # not in TCPStore's own loop, where no signal is heard
            try:
                socket.create_connection((place.address, place.port), timeout=5).close()
                store = TCPStore(
                    place.address, place.port, None, False, timedelta(seconds=CONNECT_SECONDS), wait_for_workers=False
                )
                return cls(store)
            except (OSError, RuntimeError) as error:
                if stopped() or time.monotonic() > deadline:
                    at = f"{place.address}:{place.port}"
                    raise BridgeLost(f"no policy answered at {at} within {seconds:g} s: {error}") from error
            time.sleep(0.1)

    def generation(self) -> int:
        return self._asked(lambda: self._store.add("generation", 0))

    def open_next(self) -> None:
        self._asked(lambda: self._store.add("generation", 1))

    def claim(self, generation: int) -> bool:
        """Whether we are the first to want it."""
        return self._asked(lambda: self._store.add(f"g{generation}/claims", 1)) == 1

    def write(self, key: str, text: str) -> None:
        self._asked(lambda: self._store.set(key, text))

    def read(self, key: str) -> bytes | None:
        """None where nothing has been written; never waits."""
        return self._asked(lambda: self._store.get(key) if self._store.check([key]) else None)

    def prefixed(self, prefix: str) -> PrefixStore:
        return PrefixStore(prefix, self._store)

    def _asked(self, question: Callable[[], Any]) -> Any:
        try:
            return question()
        except RuntimeError as error:
            raise BridgeLost("the policy is gone: the store at its rank 0 does not answer") from error


def signed(key: bytes, topic: str, value: Any) -> str:
    text = json.dumps(value)
    return hmac.new(key, f"{topic} {text}".encode(), hashlib.sha256).hexdigest() + text


def verified(key: bytes, topic: str, found: bytes) -> Any:
    """What `signed` was given. Raises ScaleupError when somebody else wrote it."""
    mac, text = found[:64], found[64:]
    if not hmac.compare_digest(mac, hmac.new(key, topic.encode() + b" " + text, hashlib.sha256).hexdigest().encode()):
        raise foreign(f"what stands in the store as {topic} is not signed with this run's secret")
    return json.loads(text)


def session_key(place: BridgePlace, generation: int, nonce: str) -> bytes:
    """A key of this generation alone: nothing said in another one is believed."""
    return hmac.new(place.key, f"{PROTOCOL} {generation} {nonce}".encode(), hashlib.sha256).digest()


def foreign(what: str) -> ScaleupError:
    remedy = "end what else uses this address and port, and start both groups of one run anew"
    return ScaleupError.of("reward bridge", what, remedy)


class Link:
    """One generation of the third process group: the policy's ranks first, the reward model's behind them.

    Torch's gloo moves the bytes in threads of its own. A wait that times out breaks the whole group, so nothing is
    ever polled: who waits forever does it in a thread. Every method raises BridgeLost."""

    def __init__(self, meeting: Meeting, place: BridgePlace, generation: int, key: bytes, rank: int, size: int) -> None:
        self.rank, self.size, self._key = rank, size, key
        gloo: Any = ProcessGroupGloo  # torch has no types for it
        options = gloo._Options()
        options._devices = [gloo.create_device(hostname=_own_address(place))]
        options._timeout = timedelta(seconds=CONNECT_SECONDS)
        options._threads = 2
        try:
            self._group = gloo(meeting.prefixed(f"g{generation}/gloo"), rank, size, options)
        except RuntimeError as error:
            raise BridgeLost(f"the groups could not connect: {_short(error)}") from error

    def ask(self, frame: Frame, server: int) -> Pending:
        """Returns at once."""
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

    def answer_to(self, pending: Pending, seconds: float) -> Frame:
        """Raises BridgeLost when none comes in so long, and ScaleupError for one that is not from the reward group."""
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
        """Whatever comes next, and from whom; waits forever.

        Raises ScaleupError for what is not signed or too large."""
        header = _buffer(bytes(_HEADER.size))
        try:
            work = self._group.recv_anysource([header], _HEADER_TAG)
            work.wait(_FOREVER)
            source = work._source_rank()
        except RuntimeError as error:
            raise BridgeLost(f"the policy is gone: {_short(error)}") from error
        return self._opened(header.numpy().tobytes(), lambda size: self._body(size, source), source), source

    def answer(self, frame: Frame, source: int, asked: int) -> None:
        """`asked`: the number of texts in the request, which says how much the policy awaits."""
        data = self._header(frame, self.rank, source) + frame.body
        try:
            sent = self._group.send([_buffer(data.ljust(_answer_bytes(asked), b"\0"))], source, _ANSWER_TAG)
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
    """A request under way."""

    server: int
    sequence: int
    answer: torch.Tensor
    coming: Any
    kept: Any
    """What gloo still sends from."""


def scores_frame(sequence: int, scores: list[float]) -> Frame:
    return Frame(SCORES, sequence, len(scores), struct.pack(f"<{len(scores)}d", *scores))


def scores_of(frame: Frame) -> list[float]:
    return list(struct.unpack(f"<{frame.count}d", frame.body))


def failure_frame(sequence: int, error: ScaleupError) -> Frame:
    """Cut to what fits into an answer to any request."""
    fields = [[text[:_PROBLEM_TEXT] for text in vars(problem).values()] for problem in error.problems[:2]]
    return Frame(FAILURE, sequence, 0, json.dumps(fields, ensure_ascii=False).encode())


def failure_of(frame: Frame) -> ScaleupError:
    return ScaleupError([Problem(*fields) for fields in json.loads(frame.body)])


def _answer_bytes(count: int) -> int:
    return _HEADER.size + max(count * struct.calcsize("<d"), _PROBLEM_BYTES)


def _buffer(data: bytes) -> torch.Tensor:
    return torch.frombuffer(bytearray(data), dtype=torch.uint8) if data else torch.empty(0, dtype=torch.uint8)


def _own_address(place: BridgePlace) -> str:
    """The address of this machine that faces the planned one; it is the planned one on that machine itself."""
    family, kind, protocol, _, address = socket.getaddrinfo(place.address, place.port, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind, protocol) as probe:
        probe.connect(address)  # UDP: nothing is sent
        return str(probe.getsockname()[0])


def _short(error: Exception) -> str:
    """Without gloo's own source line."""
    return str(error).split("] ", 1)[-1].split(". ", 1)[0][:200]
