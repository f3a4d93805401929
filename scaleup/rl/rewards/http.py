"""Texts go in; scores of a service come out: texts are posted as JSON, scores come back."""

from __future__ import annotations

import json
import ssl
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from threading import Event
from typing import Any
from urllib.parse import urlsplit

import httpx2

from scaleup.distributed.runtime import Runtime
from scaleup.errors import ScaleupError
from scaleup.rl.rewards.interface import Sample, checked_scores
from scaleup.rl.rewards.placements import AskedRewards, columns_of

MAX_ANSWER_BYTES = 16 * 2**20
_LONGEST_PAUSE = 10.0


class _Retry(Exception):
    """Tells of a failure that may pass."""


@dataclass(frozen=True)
class Endpoint:
    """Says where requests are posted, and for how long an answer is waited for."""

    url: str
    timeout_seconds: float
    reconnect_seconds: float
    headers: dict[str, str] = field(default_factory=dict, repr=False)
    """Holds what else a request's head says: a key is secret."""


class PostedRewards(AskedRewards):
    """Serves as the base of services that JSON is posted to, in threads.

    After no connection, no answer within `timeout_seconds`, status 429 or 5xx a request is sent again, for at most
    `reconnect_seconds`."""

    def __init__(self, runtime: Runtime, endpoint: Endpoint, where: str, at_once: int = 1) -> None:
        """Raise ScaleupError if its address is none. `where`: the config key that has the address."""
        super().__init__(runtime, where, at_once)
        if not _is_address(endpoint.url):
            raise ScaleupError.of(where, f"{endpoint.url!r} is no address", "write http://HOST:PORT/PATH, or https")
        self._endpoint = endpoint
        self._certificates = ssl.create_default_context()  # the system's
        self._is_closing = Event()

    def close(self) -> None:
        self._is_closing.set()
        super().close()

    def _answer(self, request: Any) -> bytes:
        """Return the answer to a request, which is sent again as long as it may be. Raises ScaleupError."""
        try:
            body = json.dumps(request).encode()
        except (TypeError, ValueError) as error:
            raise ScaleupError.of(self.where, f"a column of the rows cannot be sent as JSON: {error}") from error
        patience = self._endpoint.reconnect_seconds
        deadline, pause = time.monotonic() + patience, 0.25
        while True:
            try:
                return self._post(body)
            except (_Retry, httpx2.RequestError) as error:
                if time.monotonic() + pause > deadline:
                    last, section = str(error) or type(error).__name__, self.where.rpartition(".")[0]
                    what = f"{self._endpoint.url} gave no answer for {patience:g} s; the last try: {last}"
                    longer = f"raise {section}.reconnect_seconds or {section}.timeout_seconds"
                    raise ScaleupError.of(self.where, what, f"start the service, or {longer}") from error
            self._runtime.progress.enter_phase("waiting for the reward service")
            if self._is_closing.wait(pause):
                raise ScaleupError.of(self.where, "was left while a request waited for the service")
            pause = min(2 * pause, _LONGEST_PAUSE)

    def _post(self, body: bytes) -> bytes:
        """Return the body of a 200 answer. Raises _Retry, httpx2.RequestError, and ScaleupError for another status."""
        url, timeout = self._endpoint.url, self._endpoint.timeout_seconds
        due, answer = time.monotonic() + timeout, b""
        headers = {"Content-Type": "application/json", **self._endpoint.headers}
        with (
            # trust_env: the environment's proxies are left out, as the service may be a node of the cluster
            httpx2.Client(timeout=timeout, verify=self._certificates, trust_env=False) as client,
            client.stream("POST", url, content=body, headers=headers) as response,
        ):
            for part in response.iter_bytes():
                answer += part
                if time.monotonic() > due:  # httpx2's timeout is for each read
                    raise _Retry(f"the answer took longer than {timeout:g} s")
                if len(answer) > MAX_ANSWER_BYTES:
                    raise ScaleupError.of(self.where, f"{url} answers with more than {MAX_ANSWER_BYTES} bytes")
        status = f"{response.status_code} {response.reason_phrase}"
        if response.status_code == 429 or response.status_code >= 500:
            raise _Retry(f"status {status}")
        if response.status_code != 200:
            shown = answer[:200].decode(errors="replace")
            raise ScaleupError.of(self.where, f"{url} refuses: {status} {shown}")
        return answer

    def _unlike(self, answer: bytes, due: str) -> ScaleupError:
        """Return the error for an answer that is not what is due."""
        shown = answer[:80].decode(errors="replace")
        return ScaleupError.of(self.where, f"{self._endpoint.url} answers {shown!r}; {due} is due")


class HttpRewards(PostedRewards):
    """Posts `{"prompts": [...], "completions": [...], "finished": [...], COLUMN: [...]}` and takes `{"scores": [...]}`,
    a request after another."""

    def __init__(self, runtime: Runtime, endpoint: Endpoint, where: str = "reward.url") -> None:
        super().__init__(runtime, endpoint, where)

    def _scores(self, samples: Sequence[Sample]) -> list[float]:
        answer = self._answer(columns_of(samples) | {"finished": [sample.finished for sample in samples]})
        try:
            scores = json.loads(answer)["scores"]
        except (ValueError, KeyError, TypeError) as error:
            raise self._unlike(answer, '{"scores": [...]}') from error
        return checked_scores(scores, len(samples), self.where)


def _is_address(url: str) -> bool:
    try:
        httpx2.URL(url)
        address = urlsplit(url)
        return address.scheme in ("http", "https") and bool(address.hostname) and address.port != 0
    except (ValueError, httpx2.InvalidURL):  # e.g. a port that is no number
        return False
