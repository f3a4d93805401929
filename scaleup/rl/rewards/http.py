"""Texts go in; scores of a service come out: texts are posted as JSON, scores come back."""

from __future__ import annotations

import json
import ssl
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

import httpx2

from scaleup.distributed.runtime import Runtime
from scaleup.errors import ScaleupError
from scaleup.rl.rewards.interface import Sample, checked_scores
from scaleup.rl.rewards.placements import PlacedRewards, columns_of

MAX_ANSWER_BYTES = 16 * 2**20
_LONGEST_PAUSE = 10.0


class _Retry(Exception):
    """Tells of a failure that may pass."""


class HttpRewards(PlacedRewards):
    """Posts `{"prompts": [...], "completions": [...], "finished": [...], COLUMN: [...]}` and takes `{"scores": [...]}`.

    Requests are sent in a thread, in order. After no connection, no answer within `timeout_seconds`, status 429 or 5xx
    a request is sent again, for at most `reconnect_seconds`."""

    where = "reward.url"

    def __init__(self, runtime: Runtime, url: str, timeout_seconds: float, reconnect_seconds: float) -> None:
        """Raise ScaleupError if `url` is no address."""
        super().__init__(runtime)
        if not _is_address(url):
            raise ScaleupError.of(self.where, f"{url!r} is no address", "write http://HOST:PORT/PATH, or https")
        self._url = url
        self._certificates = ssl.create_default_context()  # the system's
        self._timeout = timeout_seconds
        self._reconnect = reconnect_seconds
        self._thread = ThreadPoolExecutor(1, "reward-http")
        self._answers: list[Future[list[float]]] = []

    def _submit(self, samples: Sequence[Sample]) -> None:
        if samples:
            self._answers.append(self._thread.submit(self._scores, list(samples)))

    def _collect(self) -> list[float]:
        answers, self._answers = self._answers, []
        scores: list[float] = []
        for answer in answers:
            scores += answer.result()
            self._runtime.progress.enter_phase("waiting for scores")
        return scores

    def close(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _scores(self, samples: list[Sample]) -> list[float]:
        try:
            body = json.dumps(columns_of(samples) | {"finished": [sample.finished for sample in samples]}).encode()
        except (TypeError, ValueError) as error:
            raise ScaleupError.of(self.where, f"a column of the rows cannot be sent as JSON: {error}") from error
        deadline, pause = time.monotonic() + self._reconnect, 0.25
        while True:
            try:
                answer = self._post(body)
                break
            except (_Retry, httpx2.RequestError) as error:
                if time.monotonic() + pause > deadline:
                    last = str(error) or type(error).__name__
                    what = f"{self._url} gave no answer for {self._reconnect:g} s; the last try: {last}"
                    remedy = "start the service, or raise reward.reconnect_seconds or reward.timeout_seconds"
                    raise ScaleupError.of(self.where, what, remedy) from error
            self._runtime.progress.enter_phase("waiting for the reward service")
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)
        return checked_scores(self._read(answer), len(samples), self.where)

    def _post(self, body: bytes) -> bytes:
        """Return the body of a 200 answer. Raises _Retry, httpx2.RequestError, and ScaleupError for another status."""
        due, answer = time.monotonic() + self._timeout, b""
        headers = {"Content-Type": "application/json"}
        with (
            # trust_env: the environment's proxies are left out, as the service may be a node of the cluster
            httpx2.Client(timeout=self._timeout, verify=self._certificates, trust_env=False) as client,
            client.stream("POST", self._url, content=body, headers=headers) as response,
        ):
            for part in response.iter_bytes():
                answer += part
                if time.monotonic() > due:  # httpx2's timeout is for each read
                    raise _Retry(f"the answer took longer than {self._timeout:g} s")
                if len(answer) > MAX_ANSWER_BYTES:
                    raise ScaleupError.of(self.where, f"{self._url} answers with more than {MAX_ANSWER_BYTES} bytes")
        status = f"{response.status_code} {response.reason_phrase}"
        if response.status_code == 429 or response.status_code >= 500:
            raise _Retry(f"status {status}")
        if response.status_code != 200:
            shown = answer[:200].decode(errors="replace")
            raise ScaleupError.of(self.where, f"{self._url} refuses: {status} {shown}")
        return answer

    def _read(self, answer: bytes) -> Any:
        try:
            return json.loads(answer)["scores"]
        except (ValueError, KeyError, TypeError) as error:
            shown = answer[:80].decode(errors="replace")
            what = f'{self._url} answers {shown!r}; {{"scores": [...]}} is due'
            raise ScaleupError.of(self.where, what) from error


def _is_address(url: str) -> bool:
    try:
        httpx2.URL(url)
        address = urlsplit(url)
        return address.scheme in ("http", "https") and bool(address.hostname) and address.port != 0
    except (ValueError, httpx2.InvalidURL):  # e.g. a port that is no number
        return False
