"""Texts come over the bridge; their scores go back until the policy closes it: this is the reward group's loop.

Replicated ranks (single, ddp) serve independently of each other. Sharded ones (zero3, fsdp2) must do every forward pass
together: rank 0 takes a request and broadcasts it, each scores its share, rank 0 answers."""

from __future__ import annotations

import json
import time
import traceback
from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.distributed as dist

from scaleup.bridge.server import BridgeServer
from scaleup.bridge.store import BridgePlace
from scaleup.bridge.wire import CLOSE
from scaleup.distributed.runtime import Runtime
from scaleup.errors import Problem, ScaleupError
from scaleup.rl.rewards.interface import Sample, checked_scores
from scaleup.rl.rewards.placements import unpacked

_POLL_SECONDS = 0.5
Score = Callable[[Sequence[Sample]], list[float]]
Answer = Callable[[list[Sample]], list[float] | ScaleupError]


def serve(runtime: Runtime, place: BridgePlace, model: str, score: Score, join_seconds: float) -> None:
    """Serve until the policy closes the bridge or a signal asks for a stop. All ranks of the reward group must call it.

    `model`: the reward model, as the policy's config names it. `score` gets samples without columns; under a sharded
    strategy every rank calls it with equally many. What it raises is sent to the policy, which stops with it.
    `join_seconds`: how long the policy may take to open the bridge.

    Raises BridgeLost if the policy is gone or went on without this group, ScaleupError if it is not this run's."""
    sharded = runtime.group.strategy in ("zero3", "fsdp2")
    server, where = BridgeServer(runtime, place, model, sharded), f"{place.section} group"
    try:
        if server.join(join_seconds):
            (_serve_together if sharded else _serve_alone)(runtime, server, partial(_scores, where, score))
    finally:
        server.close()


def _serve_alone(runtime: Runtime, server: BridgeServer, score: Answer) -> None:
    count = _Count(runtime)
    while not runtime.stop.requested:
        request = server.next(_POLL_SECONDS)
        count.show()
        if request is None:
            continue
        frame, _ = request
        if frame.kind == CLOSE:
            server.answer(request, [])
            return
        samples = _samples(frame.body)
        server.answer(request, score(samples))
        count.add(len(samples))


def _serve_together(runtime: Runtime, server: BridgeServer, score: Answer) -> None:
    """Serve with all ranks in step, in collectives every half second, request or not: so none waits longer, however
    long the policy trains."""
    count = _Count(runtime)
    while True:
        if runtime.rank == 0:
            request = server.next(_POLL_SECONDS)
        else:
            request = None
            server.check()
        count.show()
        closes = request is not None and request[0].kind == CLOSE
        body = request[0].body if request else b""
        length, end = runtime.sum(len(body), closes or runtime.stop.requested)
        if request and closes:
            server.answer(request, [])
        if end:
            return
        if length:
            samples = _samples(_broadcast(runtime, body, int(length), source=0))
            result = _scores_together(runtime, score, samples)
            if request:
                server.answer(request, result)
            count.add(len(samples))


def _samples(body: bytes) -> list[Sample]:
    """Return the samples of a request. The body is signed, so it is as the policy's GroupRewards wrote it."""
    return [unpacked(*item) for item in json.loads(body)]


def _scores(where: str, score: Score, samples: list[Sample]) -> list[float] | ScaleupError:
    """Return the scores, or what the scorer raised: an answer too, by which the bridge is not lost."""
    try:
        return checked_scores(score(samples), len(samples), where) if samples else []
    except ScaleupError as error:
        return error
    except Exception as error:
        traceback.print_exc()
        return ScaleupError.of(where, f"{type(error).__name__}: {error}", "its log has the traceback")


def _scores_together(runtime: Runtime, score: Answer, samples: list[Sample]) -> list[float] | ScaleupError:
    """Return the scores of all samples: every rank scores each `world`th sample; the last one is repeated until shares
    are equal."""
    if not samples:
        return []
    rank, world = runtime.rank, runtime.world
    padded = samples + samples[-1:] * (-len(samples) % world)
    result = score(padded[rank::world])
    scattered, error = [0.0] * len(padded), b""
    if isinstance(result, ScaleupError):
        error = json.dumps([vars(problem) for problem in result.problems]).encode()
    else:
        scattered[rank::world] = result
    lengths = runtime.sum(*(len(error) if other == rank else 0 for other in range(world)))
    failed = next((other for other, length in enumerate(lengths) if length), None)
    if failed is not None:
        problems = _broadcast(runtime, error, int(lengths[failed]), failed)
        return ScaleupError([Problem(**problem) for problem in json.loads(problems)])
    return runtime.sum(*scattered)[: len(samples)]


def _broadcast(runtime: Runtime, data: bytes, length: int, source: int) -> bytes:
    """Return the `data` of rank `source`, on all ranks."""
    if runtime.world == 1:
        return data
    sent = torch.frombuffer(bytearray(data.ljust(length, b"\0")[:length]), dtype=torch.uint8).to(runtime.device)
    dist.broadcast(sent, source)
    return sent.cpu().numpy().tobytes()


class _Count:
    """Reports the number of requests and samples as progress."""

    def __init__(self, runtime: Runtime) -> None:
        self._progress = runtime.progress
        self._began = time.monotonic()
        self._requests = self._samples = 0

    def add(self, samples: int) -> None:
        self._requests += 1
        self._samples += samples

    def show(self) -> None:
        rate = round(self._samples / (time.monotonic() - self._began + 1e-9), 1)
        shown = {"samples": self._samples, "samples_per_second": rate}
        self._progress.report("scoring", self._requests, None, **shown)
