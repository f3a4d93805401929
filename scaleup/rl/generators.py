"""This module holds where a policy's responses come from: the policy itself, by Transformers, or vLLM in a process of
its own. Both draw by the same sampler, `scaleup.models.gumbel`, so that in float32 they give the same responses."""

from __future__ import annotations

import base64
from collections.abc import Generator as Batches
from collections.abc import Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol

import numpy as np
import torch

from scaleup.artifacts.bridge_file import BridgeFile
from scaleup.artifacts.checkpoints import memory_folder
from scaleup.artifacts.files import write_json
from scaleup.bridge.client import StopWhileWaiting
from scaleup.config.generator import GENERATOR
from scaleup.config.stages.rl import PolicyConfig
from scaleup.distributed.runtime import Runtime
from scaleup.errors import ScaleupError
from scaleup.generator.client import EngineClient
from scaleup.generator.messages import Answer, Request, Weights
from scaleup.models.beside import unwrap
from scaleup.models.gumbel import GumbelMax
from scaleup.models.load import load_model
from scaleup.models.rollout import Responses, Sampling, limits_of, respond
from scaleup.rl.weights import WeightsWriter
from scaleup.train.job import Job

POLL_SECONDS = 0.1


@dataclass(frozen=True)
class Drawn:
    """Holds responses to some of the prompts that a generator was asked for."""

    rows: Sequence[int]
    """Numbers the prompts, among all."""
    responses: Responses
    logprobs: torch.Tensor | None = None
    """Holds the log-probabilities (n, T), in nats, by which an engine of its own drew them, float64 on the CPU."""


class Generator(Protocol):
    """Draws responses. Every rank of the policy has one and makes the same calls."""

    def renew(self, version: int) -> bool:
        """Tell it that the policy has been updated so many times. Returns whether it draws by copies of the weights,
        and has got new ones: what it draws is to be compared with the policy then."""

    def batches(
        self, prompts: Sequence[Sequence[int]], seeds: Sequence[Sequence[int]], sampling: Sampling
    ) -> Batches[Drawn, None, None]:
        """Yield this rank's share of the responses to N prompts of all ranks, every `world`th from its rank on, in
        order. Every rank must exhaust it."""

    def importance(self, log_ratio: torch.Tensor) -> torch.Tensor | None:
        """Return the weights (N, T) of tokens in the loss, from the log-ratio (N, T) of the policy's probabilities to
        those they were drawn by; None where that is 1 by itself."""

    @property
    def draws_ahead(self) -> bool:
        """Tell whether the next rollout is drawn while the policy learns from this one."""

    @property
    def is_ahead(self) -> bool:
        """Tell whether a rollout is being drawn, or drawn, that nobody has asked for yet."""

    def draw_ahead(self, prompts: Sequence[Sequence[int]], seeds: Sequence[Sequence[int]], sampling: Sampling) -> None:
        """Begin to draw what `batches` will be asked for next, by the weights of now."""

    def kept(self) -> dict[str, Any] | None:
        """Wait for what is drawn ahead, and return it on rank 0, as JSON can hold it."""

    def put_back(self, kept: dict[str, Any] | None) -> None:
        """Take what `kept` returned, in a run that goes on: the weights that drew it are gone."""

    def close(self) -> None:
        """Release what it holds; no request follows."""


@dataclass(frozen=True)
class TransformersGenerator:
    """Draws by the policy itself, in its own processes."""

    runtime: Runtime
    model: Any
    """Is a Policy under the run's strategy."""
    batch_size: int
    """Counts the prompts that a rank responds to at a time."""

    def renew(self, version: int) -> bool:
        return False

    def batches(
        self, prompts: Sequence[Sequence[int]], seeds: Sequence[Sequence[int]], sampling: Sampling
    ) -> Batches[Drawn, None, None]:
        own = range(self.runtime.rank, len(prompts), self.runtime.world)
        with self.runtime.generating(self.model, unwrap(self.model).policy) as together:
            for start in range(0, len(own), self.batch_size):
                rows = own[start : start + self.batch_size]
                self.runtime.progress.enter_phase("generating")
                asked, drawn_by = [prompts[row] for row in rows], [seeds[row] for row in rows]
                yield Drawn(rows, respond(self.model, asked, drawn_by, sampling, self.runtime.device, together))

    def importance(self, log_ratio: torch.Tensor) -> None:
        return None

    @property
    def draws_ahead(self) -> bool:
        return False

    @property
    def is_ahead(self) -> bool:
        return False

    def draw_ahead(self, prompts: Sequence[Sequence[int]], seeds: Sequence[Sequence[int]], sampling: Sampling) -> None:
        return

    def kept(self) -> None:
        return None

    def put_back(self, kept: dict[str, Any] | None) -> None:
        return

    def close(self) -> None:
        return


@dataclass(frozen=True)
class _Ahead:
    """Holds a rollout that is drawn ahead."""

    seeds: list[list[int]]
    """Holds those of its responses, by which it is known."""
    future: Future[Answer] | None
    """Is rank 0's."""
    is_taken: bool = False
    """Tells whether it is being learned from. It is kept until the next one is asked for: a run that stops in between
    could not draw it again."""


@dataclass
class VLLMGenerator:
    """Draws by an engine in a process of its own, to which the weights go after each update.

    Rank 0 asks for the responses of all ranks: the engine's own scheduling does best with all of them."""

    runtime: Runtime
    writer: WeightsWriter
    client: EngineClient | None
    """Is rank 0's."""
    tis_cap: float
    """Bounds the importance weights."""
    tis_mode: Literal["truncate", "mask"] = "truncate"
    """Says what becomes of those above: they are cut to it, or their tokens left out."""
    draws_ahead: bool = False
    _ahead: _Ahead | None = field(default=None, init=False)
    _weights: Weights | None = field(default=None, init=False)

    def renew(self, version: int) -> bool:
        """Write the weights where the engine reads them. Raises ScaleupError where they cannot be written."""
        if self._weights is not None and self._weights.version == version:
            return False
        self._settle()  # an engine that died would need the weights before
        self.runtime.progress.report("handing the weights to the generator")
        self._weights = self.writer.write(version)
        return True

    def batches(
        self, prompts: Sequence[Sequence[int]], seeds: Sequence[Sequence[int]], sampling: Sampling
    ) -> Batches[Drawn, None, None]:
        """Yield all of them at once. Raises on all ranks: ScaleupError for what the engine raised, or if there is none
        for too long, and StopWhileWaiting."""
        ahead = self._ahead if self._ahead is not None and self._ahead.seeds == _listed(seeds) else None
        future = self._submitted(prompts, seeds, sampling) if ahead is None else ahead.future
        self._wait(future, len(prompts))
        if ahead is not None:
            self._ahead = replace(ahead, is_taken=True)
        packed = torch.zeros(len(prompts), 2 * sampling.max_new_tokens + 1, dtype=torch.float64)
        if future is not None:
            packed = _packed(future.result(), sampling.max_new_tokens)
        own = self.runtime.sum_tensor(packed)[self.runtime.rank :: self.runtime.world]
        lengths, (tokens, logprobs) = own[:, 0].long(), own[:, 1:].chunk(2, dim=1)
        beyond = torch.arange(sampling.max_new_tokens) >= lengths[:, None]
        tokens = tokens.long().masked_fill(beyond, sampling.pad_id)
        last = tokens.gather(1, (lengths - 1)[:, None]).squeeze(1)
        finished = torch.isin(last, torch.tensor(sampling.eos_ids))
        rows = range(self.runtime.rank, len(prompts), self.runtime.world)
        yield Drawn(rows, Responses(tokens, lengths, finished), logprobs)

    def importance(self, log_ratio: torch.Tensor) -> torch.Tensor:
        """Return truncated importance weights (Yao et al. 2025, "Your efficient RL framework secretly brings you
        off-policy RL training"), or 0 in place of those above the cap."""
        ratio = log_ratio.exp()
        if self.tis_mode == "mask":
            return torch.where(ratio > self.tis_cap, 0.0, ratio)
        return ratio.clamp(max=self.tis_cap)

    @property
    def is_ahead(self) -> bool:
        return self._ahead is not None and not self._ahead.is_taken

    def draw_ahead(self, prompts: Sequence[Sequence[int]], seeds: Sequence[Sequence[int]], sampling: Sampling) -> None:
        self._ahead = _Ahead(_listed(seeds), self._submitted(prompts, seeds, sampling))

    def kept(self) -> dict[str, Any] | None:
        """Return it whatever signal has come: a run that goes on could not draw it again."""
        self._settle()
        if self._ahead is None or self._ahead.future is None:
            return None
        head, body = self._ahead.future.result().packed()
        return {"seeds": self._ahead.seeds, "head": head, "body": base64.b64encode(body).decode()}

    def put_back(self, kept: dict[str, Any] | None) -> None:
        if kept is None:
            return
        future: Future[Answer] = Future()
        future.set_result(Answer.unpacked(kept["head"], base64.b64decode(kept["body"])))
        self._ahead = _Ahead(kept["seeds"], future if self.client is not None else None)

    def close(self) -> None:
        if self.client is not None:
            self.client.close()
            self.writer.forget()

    def _submitted(
        self, prompts: Sequence[Sequence[int]], seeds: Sequence[Sequence[int]], sampling: Sampling
    ) -> Future[Answer] | None:
        return None if self.client is None else self.client.submit(self._request(prompts, seeds, sampling))

    def _settle(self) -> None:
        if self._ahead is not None:
            self._wait(self._ahead.future, len(self._ahead.seeds), stops=False)

    def _request(self, prompts: Sequence[Sequence[int]], seeds: Sequence[Sequence[int]], sampling: Sampling) -> Request:
        assert self._weights is not None, "`renew` comes first"
        return Request(
            weights=self._weights,
            prompts=prompts,
            seeds=GumbelMax.seeded(seeds, torch.device("cpu")).seeds.numpy(),
            limits=np.array(limits_of(seeds, sampling), np.int64),
            eos_ids=sampling.eos_ids,
            temperature=sampling.temperature,
            is_greedy=sampling.is_greedy,
        )

    def _wait(self, future: Future[Answer] | None, count: int, stops: bool = True) -> None:
        """Wait until rank 0 has an answer, in short collectives, so that every rank hears a signal, and heeds it if it
        `stops`."""
        while True:
            is_done, problem = False, None
            if future is not None and self.client is not None:
                wait([future], POLL_SECONDS)
                is_done = future.done()
                problem = future.exception() if is_done else None
                self.runtime.progress.report("drawing responses", self.client.done, count)
            done, failed, stop = self.runtime.sum(is_done, problem is not None, self.runtime.stop.requested)
            if failed:
                raise problem or ScaleupError.of("generator", "rank 0 of the policy got no responses", "see its log")
            if done:
                return
            if stop and stops:
                raise StopWhileWaiting("stopped while waiting for the generator")


def _listed(seeds: Sequence[Sequence[int]]) -> list[list[int]]:
    return [list(seed) for seed in seeds]


def _packed(answer: Answer, width: int) -> torch.Tensor:
    """Return an answer as numbers (N, 1 + 2 x width): lengths, token ids, log-probabilities."""
    packed = torch.zeros(len(answer.tokens), 1 + 2 * width, dtype=torch.float64)
    for row, tokens, logprobs in zip(packed, answer.tokens, answer.logprobs, strict=True):
        row[0] = len(tokens)
        row[1 : 1 + len(tokens)] = torch.tensor(tokens, dtype=torch.float64)
        row[1 + width : 1 + width + len(tokens)] = torch.tensor(logprobs, dtype=torch.float64)
    return packed


def generator_of(job: Job[PolicyConfig], model: Any) -> Generator:
    """Return what draws the responses of a run, for each rank. `model` is the prepared Policy.

    Raises ScaleupError if rank 0 cannot listen for an engine."""
    config, runtime, run = job.config, job.runtime, job.folder
    settings = config.generator_group
    if settings is None:
        return TransformersGenerator(runtime, model, config.train.per_device_eval_batch_size)
    client, lost = None, run.lost_file(GENERATOR)
    if runtime.is_main:
        place = BridgeFile.read(run.bridge_file(GENERATOR))
        client = EngineClient(
            place.address,
            place.port,
            place.secret,
            settings.timeout_seconds,
            settings.reconnect_seconds,
            on_lost=lambda why: write_json(lost, {"why": why}),
            on_found=lambda: lost.unlink(missing_ok=True),
        )
    folder = memory_folder(run.path, GENERATOR)
    writer = WeightsWriter(runtime, model, lambda: load_model(config.model, job.plan.model, deferred=True), folder)
    return VLLMGenerator(runtime, writer, client, settings.tis_cap, settings.tis_mode, settings.staleness > 0)
