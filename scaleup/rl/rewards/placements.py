"""This module holds the placements of a reward: a model in this process, a reward group, and the base of those that
somebody else scores: functions (`functions.py`), services (`http.py`) and judges (`judge.py`)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from typing import Any

from scaleup.bridge.client import BridgeClient, StopWhileWaiting
from scaleup.distributed.runtime import Runtime
from scaleup.errors import ScaleupError
from scaleup.records.chats import Chat
from scaleup.rl.rewards.interface import Sample, checked_scores

POLL_SECONDS = 0.1
Score = Callable[[Sequence[Sample]], list[float]]


class PlacedRewards(ABC):
    """Serves as the base of all placements: it checks scores, and tells all ranks if one of them has none."""

    where = "reward"

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._count = 0

    def submit(self, samples: Sequence[Sample]) -> None:
        """Send samples to be scored; `collect` gets the scores."""
        self._count += len(samples)
        self._submit(samples)

    def collect(self) -> list[float]:
        """Wait for the scores, in order. Raises ScaleupError on all ranks if one has none."""
        count, self._count = self._count, 0
        scores: list[float] = []
        problem = None
        try:
            scores = checked_scores(self._collect(), count, self.where)
        except ScaleupError as error:
            problem = error
        if self._runtime.any(problem is not None):
            raise problem or ScaleupError.of(self.where, "another process of the policy got no scores", "see its log")
        return scores

    def close(self) -> None:
        """Most placements have nothing to close."""
        return

    @abstractmethod
    def _submit(self, samples: Sequence[Sample]) -> None: ...

    @abstractmethod
    def _collect(self) -> Any: ...


class ColocatedRewards(PlacedRewards):
    """Scores in every process of the policy."""

    def __init__(self, runtime: Runtime, score: Score, where: str = "reward.model") -> None:
        super().__init__(runtime)
        self.where = where
        self._score = score
        self._samples: list[Sample] = []

    def _submit(self, samples: Sequence[Sample]) -> None:
        self._samples.extend(samples)

    def _collect(self) -> list[float]:
        samples, self._samples = self._samples, []
        return self._score(samples) if samples else []


class AskedRewards(PlacedRewards):
    """Serves as the base of those that somebody else scores: they are asked in threads, while the policy goes on."""

    def __init__(self, runtime: Runtime, where: str, at_once: int = 1) -> None:
        """`at_once`: how many requests may be on their way."""
        super().__init__(runtime)
        self.where = where
        self._threads = ThreadPoolExecutor(at_once, "reward")
        self._answers: list[Future[list[float]]] = []

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _submit(self, samples: Sequence[Sample]) -> None:
        self._answers += [self._threads.submit(self._scores, part) for part in self._requests(list(samples))]

    def _requests(self, samples: list[Sample]) -> list[list[Sample]]:
        """Return the samples of each request."""
        return [samples] if samples else []

    def _collect(self) -> list[float]:
        answers, self._answers = self._answers, []
        self._wait(answers)
        return [score for answer in answers for score in answer.result()]

    def _wait(self, answers: Sequence[Future[list[float]]]) -> None:
        """Wait until every rank has its answers, in short collectives, so that all hear a signal. Raises
        StopWhileWaiting."""
        while True:
            _, waits = wait(answers, POLL_SECONDS, return_when=FIRST_EXCEPTION)
            has_failed = any(answer.done() and answer.exception() for answer in answers)
            left, stop = self._runtime.sum(bool(waits) and not has_failed, self._runtime.stop.requested)
            if not left:
                return
            if stop:
                raise StopWhileWaiting("stopped while waiting for scores")
            self._runtime.progress.enter_phase("waiting for scores")

    @abstractmethod
    def _scores(self, samples: list[Sample]) -> list[float]:
        """Return the scores of a request. Raises ScaleupError."""


class GroupRewards(PlacedRewards):
    """Sends samples over the bridge to a reward group. It gets no columns: a reward model reads texts."""

    def __init__(self, runtime: Runtime, client: BridgeClient, where: str = "reward group") -> None:
        super().__init__(runtime)
        self.where = where
        self._client = client

    def _submit(self, samples: Sequence[Sample]) -> None:
        self._client.submit([packed(sample) for sample in samples])

    def _collect(self) -> list[float]:
        return self._client.collect()

    def close(self) -> None:
        self._client.close()


def packed(sample: Sample) -> list[Any]:
    """Return what goes over the bridge of a sample, as JSON can hold it."""
    chat = sample.chat and {"messages": sample.chat.messages, "tools": sample.chat.tools}
    return [sample.prompt, sample.response, sample.finished, chat]


def unpacked(prompt: str, response: str, finished: bool, chat: dict[str, Any] | None) -> Sample:
    """Return the sample that `packed` was given, without its columns."""
    return Sample(prompt, response, finished, chat=Chat(**chat) if chat else None)


def columns_of(samples: Sequence[Sample]) -> dict[str, list[Any]]:
    """Return lists of B values: `prompts`, `completions`, and each column that any sample has (None for samples without
    it)."""
    names = {name: None for sample in samples for name in sample.columns}
    columns = {name: [sample.columns.get(name) for sample in samples] for name in names}
    texts = {"prompts": [s.prompt for s in samples], "completions": [s.response for s in samples]}
    return columns | texts
