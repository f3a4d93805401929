"""Samples go in; the scores of a Python function come out, which runs in a process of its own beside each rank."""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from scaleup.children import python_environment
from scaleup.distributed.runtime import Runtime
from scaleup.errors import ScaleupError
from scaleup.rl.rewards.interface import Sample, checked_scores
from scaleup.rl.rewards.placements import AskedRewards, columns_of

WORKER = Path(__file__).with_name("function_worker.py")
START_SECONDS = 300.0
"""Bounds the seconds that a function may take to be imported, with all that it imports."""
PIPE_BYTES = 1 << 16


@dataclass(frozen=True)
class FunctionCall:
    """Says how a function is called."""

    function: str
    """Is FILE.py:NAME, MODULE:NAME or builtin:NAME."""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    """Holds settings: what the function gets beside the rows, or a built-in one is made with."""
    timeout_seconds: float = 120.0
    retries: int = 0
    """Tells how often a call is made again that raised, took too long, or whose process died."""
    as_messages: bool = False
    """Tells whether it gets conversations as TRL gives them: prompts as lists of messages, and completions as lists of
    one message. Else both are texts always, those that the policy reads and writes."""


class FunctionRewards(AskedRewards):
    """Calls a function as TRL's GRPO trainer does: `f(prompts=[...], completions=[...], completion_ids=[...],
    **columns)` returns, or as a coroutine gives, one float a completion. Columns are the other values of the rows, as
    lists.

    It runs in a process of its own, which ends with this one, so that it may take its time while responses are drawn.
    Arguments and scores go through a pipe, as JSON."""

    def __init__(self, runtime: Runtime, call: FunctionCall, where: str = "reward.function") -> None:
        """Load the function, which the config has at the key `where`. Raises ScaleupError if it cannot be loaded."""
        super().__init__(runtime, where)
        self._call = call
        self._is_closed = False
        self._process = self._started()

    def close(self) -> None:
        self._is_closed = True
        super().close()
        self._process.end()

    def _started(self) -> _Process:
        process = _Process()
        try:
            asked = {"function": self._call.function, "arguments": dict(self._call.arguments)}
            self._names = process.ask(asked, START_SECONDS)["names"]
        except _Failed as failed:
            process.end()
            raise ScaleupError.of(self.where, *failed.args) from failed
        return process

    def _scores(self, samples: Sequence[Sample]) -> list[float]:
        arguments = self._arguments(samples)
        for retry in range(self._call.retries + 1):
            self._runtime.progress.enter_phase("waiting for a reward function")
            try:
                if not self._process.is_alive:
                    self._process = self._started()
                scores = self._process.ask(arguments, self._call.timeout_seconds)["scores"]
                return self._checked(scores, len(samples))
            except _Failed as failed:
                if retry == self._call.retries or self._is_closed:
                    what, remedy = failed.args
                    again = f", and so it was after {retry} retries" if retry else ""
                    raise ScaleupError.of(self.where, self._named(what) + again, remedy) from failed
                print(f"{self.where}: {self._named(failed.args[0])}; it is called again", flush=True)
        raise AssertionError("a call returns or raises")

    def _arguments(self, samples: Sequence[Sample]) -> dict[str, Any]:
        """Return those of the rows that the function takes, without what its settings say."""
        arguments = columns_of(samples) | {"completion_ids": [list(sample.completion_ids) for sample in samples]}
        if self._call.as_messages:
            arguments["prompts"] = [s.prompt if s.chat is None else s.chat.messages for s in samples]
            arguments["completions"] = [s.response if s.chat is None else _messages(s) for s in samples]
        names = arguments.keys() - self._call.arguments.keys() if self._names is None else set(self._names)
        arguments = {name: values for name, values in arguments.items() if name in names}
        for name, values in arguments.items():
            try:
                json.dumps(values)
            except (TypeError, ValueError) as error:
                what = f"the column {name} cannot be given to a function in another process: {error}"
                raise ScaleupError.of(self.where, what, "leave it out of the rows, or write it as text") from error
        return arguments

    def _checked(self, scores: Any, count: int) -> list[float]:
        """Return the scores as `checked_scores` does. Raises ScaleupError also for one that the function leaves out."""
        if isinstance(scores, list) and None in scores:
            what = f"{self._call.function} returned None for completion {scores.index(None)} of {len(scores)}"
            remedy = "return a number for each: TRL leaves such a reward out of the sum, and no score is made up here"
            raise ScaleupError.of(self.where, what, remedy)
        return checked_scores(scores, count, self.where)

    def _named(self, what: str) -> str:
        name = self._call.function
        return what if name in what else f"{name} {what}"


class _Failed(Exception):
    """Tells what went wrong with a call, and what to do: the call may be made again."""


class _Process:
    """Is the process of a function."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(WORKER)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=python_environment(),
            start_new_session=True,
        )

    @property
    def is_alive(self) -> bool:
        return self._process.poll() is None

    def ask(self, request: Mapping[str, Any], seconds: float) -> dict[str, Any]:
        """Return the answer to a request. Raises _Failed; the process has ended where it did not answer."""
        try:
            answer = json.loads(self._exchange(json.dumps(request).encode() + b"\n", time.monotonic() + seconds))
        except TimeoutError:
            self.end()
            raise _Failed(f"took longer than {seconds:g} s", "raise its timeout_seconds or retries") from None
        except (EOFError, OSError):
            self.end()
            raise _Failed(self._ending(), "see the log") from None
        if "problem" in answer:
            raise _Failed(*answer["problem"])
        return dict(answer)

    def end(self) -> None:
        """End it, and what it has started."""
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def _exchange(self, line: bytes, deadline: float) -> bytes:
        """Write a line, and return the one that comes back. Raises TimeoutError, and EOFError or OSError if the process
        has ended."""
        to, back = self._pipe(self._process.stdin), self._pipe(self._process.stdout)
        left, answer = memoryview(line), bytearray()
        with selectors.DefaultSelector() as selector:
            selector.register(back, selectors.EVENT_READ)
            selector.register(to, selectors.EVENT_WRITE)
            while not answer.endswith(b"\n"):
                ready = {key.fd for key, _ in selector.select(max(0.0, deadline - time.monotonic()))}
                if not ready:
                    raise TimeoutError
                if to in ready:
                    left = left[os.write(to, left[:PIPE_BYTES]) :]
                    if not left:
                        selector.unregister(to)
                if back in ready:
                    part = os.read(back, PIPE_BYTES)
                    if not part:
                        raise EOFError
                    answer += part
        return bytes(answer)

    @staticmethod
    def _pipe(stream: IO[bytes] | None) -> int:
        assert stream is not None
        os.set_blocking(stream.fileno(), False)
        return stream.fileno()

    def _ending(self) -> str:
        code = self._process.returncode
        how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
        return f"gave no answer: its process {how}"


def _messages(sample: Sample) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": sample.response}]
