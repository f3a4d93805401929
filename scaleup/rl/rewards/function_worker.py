"""This module is the process of a reward function: JSON lines come in, answers go out, until nobody is left to ask.

It is run as a file, not by its name: it needs nothing of this package, whose import would take seconds. Its stdout is
the pipe to its rank; what the function prints goes to stderr, which is the rank's log. The first line names the
function, `{"function": ..., "arguments": {...}}`, and every other line holds its arguments. An answer is
`{"names": [...]}`, the arguments that it takes (null: any); `{"scores": ...}`; or `{"problem": [what, remedy]}`."""

from __future__ import annotations

import asyncio
import ctypes
import functools
import importlib
import importlib.util
import inspect
import json
import os
import queue
import signal
import sys
import threading
import traceback
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import ModuleType
from typing import Any, BinaryIO

BUILTIN = "builtin"
READY = Path(__file__).with_name("ready.py")
FORMS = "write FILE.py:NAME, MODULE:NAME or builtin:NAME"


class Unusable(Exception):
    """Tells why a function cannot be called, and what to do."""


def main() -> None:
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: also out of C code that lets no thread read on
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(number, lambda *_: None)  # a rank that saves still needs its scores
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    requests: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(sys.stdin.buffer, requests), daemon=True).start()
    with asyncio.Runner() as runner:
        asked = json.loads(requests.get())
        name, call = asked["function"], None
        try:
            call, names = loaded(name, asked["arguments"])
            _answer(answers, {"names": names})
        except Unusable as error:
            _answer(answers, {"problem": error.args})
        while True:
            arguments = json.loads(requests.get())
            assert call is not None, "who hears of a problem asks no more"
            _answer(answers, _called(runner, name, call, arguments))


def _read(stream: BinaryIO, requests: queue.SimpleQueue[bytes]) -> None:
    """Takes requests, also while the function is at work: so the end of its rank is noticed at once."""
    for line in stream:
        requests.put(line)
    os._exit(0)


def _answer(answers: BinaryIO, value: dict[str, Any]) -> None:
    try:
        line = json.dumps(value)
    except (TypeError, ValueError) as error:
        line = json.dumps({"problem": [f"returned what is no list of numbers: {error}", "return a number for each"]})
    answers.write(line.encode() + b"\n")
    answers.flush()


def _called(runner: asyncio.Runner, name: str, call: Callable[..., Any], arguments: dict[str, Any]) -> dict[str, Any]:
    try:
        scores = call(**arguments)
        if inspect.isawaitable(scores):
            scores = runner.run(_awaited(scores))
        return {"scores": plain(scores)}
    except (Exception, SystemExit) as error:  # it is the user's code: anything may come
        traceback.print_exc()
        sys.stderr.flush()
        return {"problem": [f"{name} raised {type(error).__name__}: {error}", "the log has its traceback"]}


async def _awaited(scores: Awaitable[Any]) -> Any:
    return await scores


def plain(scores: Any) -> Any:
    """Return scores as JSON can hold them: an array or a tensor, or a list of such numbers, as plain numbers."""
    values = scores.tolist() if hasattr(scores, "tolist") else scores
    if not isinstance(values, list | tuple):
        return values
    return [value.item() if hasattr(value, "item") else value for value in values]


def loaded(function: str, arguments: dict[str, Any]) -> tuple[Callable[..., Any], list[str] | None]:
    """Return a function with its settings, and the names of the arguments that it takes beside them (None: any).

    Raises Unusable."""
    call = load_function(function)
    try:
        if function.startswith(f"{BUILTIN}:"):
            call, arguments = call(**arguments), {}
        signature = inspect.signature(call)
        signature.bind_partial(**arguments)
    except Exception as error:
        what = f"{function} cannot have the arguments {arguments}: {type(error).__name__}: {error}"
        raise Unusable(what, "mend them") from error
    parameters = signature.parameters.values()
    takes_any = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters)
    names = [parameter.name for parameter in parameters if parameter.name not in arguments]
    return functools.partial(call, **arguments), None if takes_any else names


def load_function(function: str) -> Callable[..., Any]:
    """Import FILE.py:NAME, MODULE:NAME or builtin:NAME. Raises Unusable."""
    place, colon, name = function.rpartition(":")
    if not colon or not place or not name:
        raise Unusable(f"{function!r} names no function", FORMS)
    module = _module(str(READY) if place == BUILTIN else place)
    found = getattr(module, name, None)
    if not callable(found):
        known = ", ".join(sorted(key for key, value in vars(module).items() if inspect.isfunction(value))) or "none"
        raise Unusable(f"{place} has no function {name}", f"its functions: {known}")
    return found


def _module(place: str) -> ModuleType:
    try:
        if not place.endswith(".py"):
            return importlib.import_module(place)
        file = Path(place).expanduser().absolute()
        if not file.is_file():
            raise Unusable(f"there is no file {place}", f"it is looked for at {file}")
        spec = importlib.util.spec_from_file_location(f"reward_{file.stem}", file)
        assert spec and spec.loader
        sys.path.append(str(file.parent))  # for what it imports from beside it: last, for it may have a random.py there
        module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module
    except Unusable:
        raise
    except (Exception, SystemExit) as error:  # it is the user's code: anything may come
        traceback.print_exc()
        raise Unusable(f"{place} cannot be loaded: {type(error).__name__}: {error}", "mend it, or its name") from error


if __name__ == "__main__":
    main()
