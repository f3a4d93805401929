"""A service that scores: JSON is posted, JSON comes back."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from typing import Any
from urllib.parse import SplitResult, urlsplit

from scaleup.distributed.runtime import Runtime
from scaleup.errors import ScaleupError
from scaleup.rl.placements import PlacedRewards, columns_of
from scaleup.rl.rewards import Sample, checked_scores

MAX_ANSWER_BYTES = 16 * 2**20
_LONGEST_PAUSE = 10.0


class _Retry(Exception):
    """A failure that may pass."""


class HttpRewards(PlacedRewards):
    """Posts `{"prompts": [...], "completions": [...], "finished": [...], COLUMN: [...]}` and takes `{"scores": [...]}`.

    Requests go out in a thread, in order. No connection, silence, 429 and 5xx are tried again for that many seconds
    (`reconnect_seconds`)."""

    where = "reward.url"

    def __init__(self, runtime: Runtime, url: str, timeout_seconds: float, reconnect_seconds: float) -> None:
        """Raises ScaleupError for what is no address."""
        super().__init__(runtime)
        self._url = url
        self._address = _checked(url)
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
            self._runtime.progress.at("waiting for scores")
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
            except (_Retry, OSError, HTTPException) as error:
                if time.monotonic() + pause > deadline:
                    what = f"{self._url} gave no answer for {self._reconnect:g} s; the last try: {_said(error)}"
                    remedy = "start the service, or raise reward.reconnect_seconds or reward.timeout_seconds"
                    raise ScaleupError.of(self.where, what, remedy) from error
            self._runtime.progress.at("waiting for the reward service")
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)
        return checked_scores(self._read(answer), len(samples), self.where)

    def _post(self, body: bytes) -> bytes:
        address = self._address
        kind = HTTPSConnection if address.scheme == "https" else HTTPConnection
        connection = kind(address.hostname or "", address.port, timeout=self._timeout)
        path = (address.path or "/") + (f"?{address.query}" if address.query else "")
        due = time.monotonic() + self._timeout
        try:
            connection.request("POST", path, body, {"Content-Type": "application/json"})
            response = connection.getresponse()
            answer = b""
            while part := response.read1(2**16):
                answer += part
                if time.monotonic() > due:
                    raise _Retry(f"the answer took longer than {self._timeout:g} s")
                if len(answer) > MAX_ANSWER_BYTES:
                    raise ScaleupError.of(self.where, f"{self._url} answers with more than {MAX_ANSWER_BYTES} bytes")
        finally:
            connection.close()
        if response.status == 429 or response.status >= 500:
            raise _Retry(f"status {response.status} {response.reason}")
        if response.status != 200:
            shown = answer[:200].decode(errors="replace")
            raise ScaleupError.of(self.where, f"{self._url} refuses: {response.status} {response.reason} {shown}")
        return answer

    def _read(self, answer: bytes) -> Any:
        try:
            return json.loads(answer)["scores"]
        except (ValueError, KeyError, TypeError) as error:
            shown = answer[:80].decode(errors="replace")
            what = f'{self._url} answers {shown!r}; {{"scores": [...]}} is due'
            raise ScaleupError.of(self.where, what) from error


def _checked(url: str) -> SplitResult:
    try:
        address = urlsplit(url)
        if address.scheme in ("http", "https") and address.hostname and address.port != 0:
            return address
    except ValueError:
        pass  # a port that is no number
    raise ScaleupError.of(HttpRewards.where, f"{url!r} is no address", "write http://HOST:PORT/PATH, or https")


def _said(error: Exception) -> str:
    return str(error) or type(error).__name__
