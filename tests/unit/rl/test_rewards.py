"""Rewards that need no process group: a function, a service, a model in the policy's own process."""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from typing import Any

import numpy as np
import pytest
import torch

from scaleup.bridge.client import StopWhileWaiting
from scaleup.distributed.runtime import Runtime
from scaleup.errors import ScaleupError
from scaleup.rl.rewards import http as http_rewards
from scaleup.rl.rewards.http import Endpoint, HttpRewards
from scaleup.rl.rewards.interface import Rewards, RewardSet, Sample, checked_scores
from scaleup.rl.rewards.placements import ColocatedRewards
from tests.service import Service
from tests.unit.data.tiny import single_process

SAMPLES = [Sample("ab", "cde", True, {"answer": 3}), Sample("é", "", False, {"answer": 5, "hint": "x"})]


@pytest.fixture(scope="module")
def runtime(tmp_path_factory: pytest.TempPathFactory) -> Runtime:
    return single_process(tmp_path_factory.mktemp("placements"))


def lengths(samples: Sequence[Sample]) -> list[float]:
    return [float(len(sample.prompt + sample.response)) for sample in samples]


def collected(rewards: Rewards, *batches: Sequence[Sample]) -> list[float]:
    for batch in batches:
        rewards.submit(batch)
    return rewards.collect()


def error_of(action: Callable[[], object]) -> str:
    with pytest.raises(ScaleupError) as caught:
        action()
    return str(caught.value)


# --- what counts as scores


@pytest.mark.parametrize(
    "values", [[1, 2.5], (1, 2.5), np.array([1, 2.5]), torch.tensor([1, 2.5]), [True, np.float32(2.5)]]
)
def test_scores_may_be_any_numbers(values: Any) -> None:
    assert checked_scores(values, 2, "reward") == [1.0, 2.5]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([1.0], "reward: 2 texts were to be scored, and 1 scores came"),
        ([1.0, math.nan], "reward: score 1 of 2 is nan"),
        (torch.tensor([1.0, -math.inf]), "reward: score 1 of 2 is -inf"),
        ([1.0, None], "reward: score 1 is NoneType None, not a number"),
        ([1.0, "2"], "reward: score 1 is str '2', not a number"),
        (None, "reward: a list of 2 scores is due, and NoneType None came"),
        ({"scores": []}, "reward: a list of 2 scores is due, and dict"),
    ],
)
def test_anything_else_is_refused(values: Any, message: str) -> None:
    assert message in error_of(lambda: checked_scores(values, 2, "reward"))


# --- in the policy's own process


def test_a_colocated_model_scores_all_that_was_submitted(runtime: Runtime) -> None:
    rewards = ColocatedRewards(runtime, lengths)
    assert collected(rewards, SAMPLES, [], SAMPLES[:1]) == [5.0, 1.0, 5.0]
    assert collected(rewards, []) == []
    assert collected(rewards, SAMPLES[1:]) == [1.0]


# --- several


class Noting:
    """Notes what it is asked, among what others are."""

    def __init__(self, name: str, told: list[str]) -> None:
        self.name, self.told = name, told

    def submit(self, samples: Sequence[Sample]) -> None:
        self.told.append(f"{self.name} is sent {len(samples)}")

    def collect(self) -> list[float]:
        self.told.append(f"{self.name} is waited for")
        return [1.0, float(len(self.name))]

    def close(self) -> None:
        self.told.append(f"{self.name} is closed")
        raise ValueError(self.name)


def test_all_rewards_are_asked_before_any_is_waited_for_and_all_are_closed() -> None:
    told: list[str] = []
    rewards = RewardSet({name: Noting(name, told) for name in ("one", "other")}, [2.0, -0.5])
    rewards.submit(SAMPLES)
    by_source = rewards.collect()
    assert told == ["one is sent 2", "other is sent 2", "one is waited for", "other is waited for"]
    scores = {name: torch.tensor(values, dtype=torch.float64) for name, values in by_source.items()}
    assert rewards.weighted(scores).tolist() == [2.0 - 0.5, 2.0 * 3 - 0.5 * 5]
    with pytest.raises(ValueError, match=r"one|other"):
        rewards.close()
    assert sorted(told[4:]) == ["one is closed", "other is closed"]


# --- a service


def nothing(asked: dict[str, Any]) -> tuple[int, bytes]:
    return 200, json.dumps({"scores": [0.0] * len(asked["prompts"])}).encode()


@pytest.fixture
def service() -> Iterator[Service]:
    with closing(Service("/score?model=m", nothing)) as service:
        yield service


def scores(asked: dict[str, Any]) -> tuple[int, bytes]:
    values = [len(prompt + text) for prompt, text in zip(asked["prompts"], asked["completions"], strict=True)]
    return 200, json.dumps({"scores": values}).encode()


def test_a_service_is_sent_texts_and_columns(runtime: Runtime, service: Service) -> None:
    service.answer = scores
    rewards = HttpRewards(runtime, Endpoint(service.url, 10, 10))
    assert collected(rewards, SAMPLES, [], SAMPLES[:1]) == [5.0, 1.0, 5.0]
    columns = {"answer": [3, 5], "hint": [None, "x"]}
    assert service.asked[0] == {"prompts": ["ab", "é"], "completions": ["cde", ""], "finished": [True, False]} | columns
    assert len(service.asked) == 2
    rewards.close()


def test_a_stop_does_not_wait_for_a_service_that_does_not_answer(runtime: Runtime, service: Service) -> None:
    """All ranks hear of it together; what is on its way is left."""
    answers = threading.Event()

    def silent(asked: dict[str, Any]) -> tuple[int, bytes]:
        runtime.stop.requested = True
        answers.wait(30)
        return scores(asked)

    service.answer = silent
    rewards = HttpRewards(runtime, Endpoint(service.url, 30, 30))
    rewards.submit(SAMPLES)
    try:
        with pytest.raises(StopWhileWaiting):
            rewards.collect()
        assert not answers.is_set()
    finally:
        runtime.stop.requested = False
        answers.set()
        rewards.close()


def test_a_request_that_waits_for_a_service_ends_when_the_rewards_are_closed(runtime: Runtime) -> None:
    rewards = HttpRewards(runtime, Endpoint("http://127.0.0.1:9/score", 600, 600))  # nobody listens there
    rewards.submit(SAMPLES)
    (answer,) = rewards._answers
    rewards.close()
    with pytest.raises(ScaleupError, match="was left while a request waited for the service"):
        answer.result(timeout=60)


def test_submit_does_not_wait_for_the_service(runtime: Runtime, service: Service) -> None:
    submitted = threading.Event()

    def patient(asked: dict[str, Any]) -> tuple[int, bytes]:
        assert submitted.wait(10)
        return scores(asked)

    service.answer = patient
    rewards = HttpRewards(runtime, Endpoint(service.url, 10, 10))
    rewards.submit(SAMPLES)
    submitted.set()
    assert rewards.collect() == [5.0, 1.0]


def test_a_service_that_is_busy_or_broken_for_a_while_is_asked_again(runtime: Runtime, service: Service) -> None:
    replies = iter([(503, b"loading"), (429, b"slow down")])
    service.answer = lambda asked: next(replies, None) or scores(asked)
    assert collected(HttpRewards(runtime, Endpoint(service.url, 10, 10)), SAMPLES) == [5.0, 1.0]
    assert len(service.asked) == 3


@pytest.mark.parametrize(
    ("status", "body", "message"),
    [
        (200, b"[1, 2]", "answers '[1, 2]'; {\"scores\": [...]} is due"),
        (200, b"<html>", "answers '<html>'"),
        (200, b'{"scores": [1]}', "2 texts were to be scored, and 1 scores came"),
        (200, b'{"scores": [1, NaN]}', "score 1 of 2 is nan"),
        (200, b'{"scores": [1, "2"]}', "score 1 is str '2'"),
        (404, b"no such model", "refuses: 404 Not Found no such model"),
        (200, b" " * 3000, "answers with more than 2000 bytes"),
        (500, b"", "gave no answer for 1 s; the last try: status 500"),
    ],
)
def test_a_service_that_answers_wrongly_is_named(
    runtime: Runtime, service: Service, status: int, body: bytes, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_rewards, "MAX_ANSWER_BYTES", 2000)
    service.answer = lambda asked: (status, body)
    error = error_of(lambda: collected(HttpRewards(runtime, Endpoint(service.url, 10, 1)), SAMPLES))
    assert error.startswith("reward.url: ")
    assert message in error


def test_a_service_that_is_silent_or_absent_is_named(runtime: Runtime, service: Service) -> None:
    never = threading.Event()
    service.answer = lambda asked: (200, b"late" * never.wait(1))
    error = error_of(lambda: collected(HttpRewards(runtime, Endpoint(service.url, 0.2, 0.1)), SAMPLES))
    assert "gave no answer for 0.1 s; the last try: timed out" in error
    url = "http://127.0.0.1:9/score"
    error = error_of(lambda: collected(HttpRewards(runtime, Endpoint(url, 1, 0.1)), SAMPLES))
    assert f"reward.url: {url} gave no answer for 0.1 s; the last try: [Errno 111] Connection refused" in error


@pytest.mark.parametrize("url", ["localhost:80", "ftp://a/b", "http://", "http://a:x/"])
def test_an_address_that_is_none_is_named(runtime: Runtime, url: str) -> None:
    assert f"reward.url: {url!r} is no address" in error_of(lambda: HttpRewards(runtime, Endpoint(url, 1, 1)))


def test_a_column_that_is_no_json_is_named(runtime: Runtime, service: Service) -> None:
    sample = Sample("a", "b", True, {"image": b"bytes"})
    error = error_of(lambda: collected(HttpRewards(runtime, Endpoint(service.url, 1, 1)), [sample]))
    assert "reward.url: a column of the rows cannot be sent as JSON" in error
