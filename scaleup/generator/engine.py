"""A run folder and the name of a group go in; this process answers the policy's requests until it is told to end.

    PYTHON -m scaleup.generator.engine runs/X generator

PYTHON is that of an environment with vLLM. What is imported here needs torch, NumPy and the standard library beside it:
that environment has another Transformers than ours, and need not have Accelerate or PEFT."""

from __future__ import annotations

import argparse
import os
import socket
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Event, Thread
from typing import Any, Protocol

from scaleup.artifacts.bridge_file import BridgeFile
from scaleup.artifacts.files import read_json, write_json
from scaleup.distributed.heartbeat import Heartbeat
from scaleup.generator.messages import PROTOCOL, Answer, Request
from scaleup.generator.wire import Channel, ConnectionLost, greet_policy

JOIN_SECONDS = 1800.0
"""Bounds how long an engine waits for the policy to listen."""
TELL_SECONDS = 1.0
"""Counts the seconds between two signs of life while responses are drawn."""

Tell = Callable[[int], None]
"""Is called now and then with the number of responses that are done."""


class Drawer(Protocol):
    """Draws responses by the weights that a request names."""

    def draw(self, request: Request, tell: Tell) -> Answer:
        """Return a response to each prompt. What it raises is the policy's to show."""


def serve(channel: Channel, drawer: Drawer, heartbeat: Heartbeat) -> None:
    """Answer requests until the policy says that it needs no more. Raises ConnectionLost if it is gone."""
    while True:
        heartbeat.enter_phase("waiting for the policy")
        head, body = channel.receive()
        if head["kind"] == "close":
            channel.send({"kind": "closed"})
            return
        heartbeat.enter_phase("drawing responses")
        try:
            if head["protocol"] != PROTOCOL:
                raise ValueError(f"the policy speaks protocol {head['protocol']}, the generator {PROTOCOL}")
            answer = drawer.draw(Request.unpacked(head, body), _teller(channel, heartbeat))
        except ConnectionLost:
            raise
        except Exception as error:
            traceback.print_exc()
            channel.send({"kind": "failed", "error": f"{type(error).__name__}: {error}"[:2000]})
            continue
        channel.send(*answer.packed())


def _teller(channel: Channel, heartbeat: Heartbeat) -> Tell:
    last = 0.0

    def tell(done: int) -> None:
        nonlocal last
        heartbeat.enter_phase("drawing responses")
        if time.monotonic() - last >= TELL_SECONDS:
            channel.send({"kind": "drawing", "done": done})
            last = time.monotonic()

    return tell


@contextmanager
def alive(tell: Tell) -> Iterator[None]:
    """Gives signs of life meanwhile, from another thread: to load a large model takes minutes in one call."""
    over = Event()

    def go_on() -> None:
        with suppress(ConnectionLost):
            while not over.wait(TELL_SECONDS):
                tell(0)

    thread = Thread(target=go_on, name="alive", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def join(place: BridgeFile, seconds: float = JOIN_SECONDS) -> Channel:
    """Return the connection to the policy once it listens and has use for an engine. Raises ConnectionLost if it does
    not listen within `seconds`, or is not this run's."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            connection = socket.create_connection((place.address, place.port), timeout=5)
            break
        except OSError as error:
            if time.monotonic() > deadline:
                at = f"{place.address}:{place.port}"
                raise ConnectionLost(f"no policy listened at {at} within {seconds:g} s: {error}") from error
            time.sleep(0.2)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.settimeout(None)  # the policy greets once it asks for something
    return greet_policy(connection, bytes.fromhex(place.secret))


def main(drawer_of: Callable[[dict[str, Any]], Drawer] | None = None) -> None:
    """Run an engine of the group that the command line names. `drawer_of` takes its settings; vLLM by default."""
    arguments = _arguments()
    heartbeats = Path(arguments.local) / "heartbeats" if arguments.local else None
    heartbeat = Heartbeat(heartbeats / f"{arguments.group}-rank0.json" if heartbeats else None).start()
    run = Path(arguments.run)
    settings = read_json(run / "launch" / f"{arguments.group}.json")
    try:
        heartbeat.enter_phase("importing vLLM")
        drawer = (drawer_of or _by_vllm)(settings)
        heartbeat.enter_phase("waiting for the policy")
        channel = join(BridgeFile.read(Path(settings["bridge"])))
        serve(channel, drawer, heartbeat)
    except ConnectionLost as error:
        print(f"generator: {error}; this process ends", flush=True)
        _end(1)
    except Exception as error:
        traceback.print_exc()
        if arguments.attempt:
            _record(run, arguments, error)
        _end(1)
    _end(0)


def _by_vllm(settings: dict[str, Any]) -> Drawer:
    from scaleup.generator.vllm_drawer import VLLMDrawer  # it imports vLLM, which takes seconds

    return VLLMDrawer(settings)


def _record(run: Path, arguments: argparse.Namespace, error: Exception) -> None:
    """Record an error where the launcher looks for those of workers."""
    rank = f"{arguments.group}-rank0"
    told = {"rank": rank, "time": time.time(), "problems": [], "error": f"{type(error).__name__}: {error}"}
    told["traceback"] = "".join(traceback.format_exception(error))
    write_json(run / "attempts" / str(arguments.attempt) / "errors" / f"{rank}.json", told)


def _end(code: int) -> None:
    """End at once: vLLM's own threads and processes need not be waited for."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scaleup.generator.engine", description="The engine of a run's generator.")
    parser.add_argument("run", help="the run folder")
    parser.add_argument("group", help="the group of the plan, e.g. generator")
    parser.add_argument("--attempt", type=int, help="the attempt whose folder takes errors")
    parser.add_argument("--node", type=int, default=0, help="the node whose agent started it")
    parser.add_argument("--local", help="the node's own folder, which takes heartbeats")
    return parser.parse_args()


if __name__ == "__main__":
    main()
