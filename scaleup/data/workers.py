"""Work goes in, in parts, and comes out in their order, done by further processes of this node: `python -m
scaleup.data.workers DESCRIPTOR`, each at its end of a pair of sockets.

They need no end of their own: a worker whose caller is gone reads the end of its socket, however the caller went."""

from __future__ import annotations

import importlib
import os
import socket
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any

from scaleup.children import python_environment
from scaleup.errors import Problem, ScaleupError

AHEAD = 2
"""Counts the parts a worker that are given out before the first of them is back: what bounds the memory they take."""


class Workers:
    """Calls a function in `count` processes. `function` names it, `module:name`; it is called with `setting` once in
    each process, and what it returns is called with each part. All of these are pickled on the way."""

    def __init__(self, function: str, setting: Any, count: int) -> None:
        self._first = (function, setting)
        self._count = count
        self._threads = ThreadPoolExecutor(count, thread_name_prefix="worker")
        self._own = threading.local()
        self._processes: list[tuple[subprocess.Popen[bytes], Connection]] = []

    def map(self, parts: Iterable[Any]) -> Iterator[Any]:
        """Yields what the function returns of each part, in their order. Raises what it raises of the first part that
        fails, and ScaleupError where a process dies."""
        waiting: deque[Future[Any]] = deque()
        for part in parts:
            waiting.append(self._threads.submit(self._call, part))
            if len(waiting) > AHEAD * self._count:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()

    def close(self) -> None:
        """Ends the processes, what they have begun aside."""
        for process, connection in self._processes:
            process.kill()
            with suppress(OSError):
                connection.close()
            process.wait()
        self._threads.shutdown(cancel_futures=True)

    def _call(self, part: Any) -> Any:
        if not hasattr(self._own, "connection"):
            self._own.process, self._own.connection = self._started()
            self._own.connection.send(self._first)
        try:
            self._own.connection.send(part)
            error, result = self._own.connection.recv()
        except (EOFError, OSError):
            code = self._own.process.wait()
            what = f"a process that tokenizes rows has ended with code {code}"
            remedy = "is there memory enough? Its last words stand above" if code else "start again"
            raise ScaleupError(Problem("data", what, remedy)) from None
        if error is not None:
            raise error
        return result

    def _started(self) -> tuple[subprocess.Popen[bytes], Connection]:
        ours, theirs = socket.socketpair()
        with theirs:
            process = subprocess.Popen(
                [sys.executable, "-m", "scaleup.data.workers", str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                env=python_environment(1) | {"TOKENIZERS_PARALLELISM": "false"},
                pass_fds=[theirs.fileno()],
            )
        connection = Connection(ours.detach())
        self._processes.append((process, connection))
        return process, connection


def num_cores() -> int:
    """Returns how many cores this process may use."""
    return len(os.sched_getaffinity(0))


def serve(connection: Connection) -> None:
    """Works for the caller until it closes its end."""
    with suppress(EOFError, OSError):
        function, setting = connection.recv()
        module, name = function.split(":")
        work: Callable[[Any], Any] = getattr(importlib.import_module(module), name)(setting)
        while True:
            part = connection.recv()
            try:
                answer: tuple[Exception | None, Any] = (None, work(part))
            except Exception as error:
                answer = (error, None)
            connection.send(answer)


if __name__ == "__main__":
    serve(Connection(int(sys.argv[1])))
