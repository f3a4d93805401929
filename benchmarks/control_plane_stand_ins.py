"""This module holds what stands in for a run's processes in `control_plane.py`, which says what is real: agents that
start small processes, launchers that fork ranks, ranks that have a heartbeat; and how each counts what it does."""

from __future__ import annotations

import mmap
import os
import signal
import struct
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(os.environ.get("SCALEUP_TREE") or Path(__file__).resolve().parents[1]).resolve()
sys.path.insert(0, str(ROOT))

HEADER = 8
STUCK, STUCK_AT, DIES, STOPS, LED, SPEED = range(6)
"""Are the places of what all processes see: the rank that stands still (from 1), since when, the one that is killed,
whether the ranks are to stop, when node 0 has last started its own, and how many times faster than usual the agents'
time passes."""
READS, WRITES, ATTEMPT = range(3)
"""Are the places in a process's own row: what it has counted, and the attempt that it is up in."""


class Shared:
    """Holds numbers that all processes see, in a file that is mapped; each writes its own row."""

    def __init__(self, file: Path, processes: int = 0) -> None:
        self._file = file
        if processes:
            file.write_bytes(bytes(8 * (HEADER + 3 * processes)))
        with file.open("r+b") as opened:
            self._map = mmap.mmap(opened.fileno(), 0)

    def __getitem__(self, place: int) -> float:
        return float(struct.unpack_from("d", self._map, 8 * place)[0])

    def __setitem__(self, place: int, value: float) -> None:
        struct.pack_into("d", self._map, 8 * place, value)

    def row(self, process: int) -> int:
        return HEADER + 3 * process

    def total(self, kind: int, processes: range) -> int:
        return int(sum(self[self.row(process) + kind] for process in processes))


def count(shared: Shared, process: int, folder: Path) -> None:
    """Counts this process's operations in a folder from now on."""
    row, prefix, stat = shared.row(process), str(folder), os.stat
    listings = {"os.listdir", "os.scandir", "os.mkdir", "os.remove", "os.rmdir"}

    def note(kind: int, path: Any) -> None:
        if not isinstance(path, int) and os.fsdecode(path).startswith(prefix):
            shared[row + kind] += 1

    def heard(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            path, _, flags = arguments
            if not flags & (os.O_WRONLY | os.O_RDWR):
                note(READS, path)
            elif not _is_aside(path):  # what is written aside counts when it gets its name
                note(WRITES, path)
        elif event == "os.rename":
            note(WRITES, arguments[1])
        elif event in listings and not _is_aside(arguments[0]):
            note(READS if event in ("os.listdir", "os.scandir") else WRITES, arguments[0])

    def counted(path: Any, *arguments: Any, **named: Any) -> os.stat_result:
        note(READS, path)
        return stat(path, *arguments, **named)

    os.stat = counted  # type: ignore[assignment]
    sys.addaudithook(heard)


def _is_aside(path: Any) -> bool:
    return not isinstance(path, int) and os.fsdecode(path).endswith(".tmp")


def rename_process(old: bytes, new: bytes) -> None:
    """Replaces a word in what the kernel shows as this process's command line."""
    import ctypes

    start, end = (int(field) for field in Path("/proc/self/stat").read_text().rpartition(")")[2].split()[45:47])
    line = ctypes.string_at(start, end - start)
    ctypes.memmove(start, line.replace(old, new.ljust(len(old))[: len(old)], 1), end - start)


def be_rank(shared: Shared, run: Path, attempt: Path, local: str, node: int, rank: int, index: int) -> None:
    """Is a worker from its start to its end."""
    from scaleup.artifacts.files import write_json
    from scaleup.distributed import heartbeat

    name, speed = f"policy-rank{rank}", shared[SPEED]
    rename_process(b"accelerate.commands.launch", b"")
    count(shared, index, run)
    heartbeat.BEAT_SECONDS /= speed

    def stop(*_: object) -> None:
        if shared[STUCK]:  # the others are in a collective that does not end
            os._exit(1)
        shared[STOPS] = 1.0

    signal.signal(signal.SIGUSR1, stop)
    signal.signal(signal.SIGTERM, stop)
    if local:
        beats = heartbeat.Heartbeat(Path(local) / f"heartbeats/{name}.json").start()
    else:  # before there were such folders
        beats = heartbeat.Heartbeat(attempt / f"heartbeats/{name}.json", node).start()  # type: ignore[call-arg]
    place = {"pid": os.getpid(), "host": os.uname().nodename, "node": node}
    write_json(attempt / f"workers/{name}.json", place, is_durable=False)
    shared[shared.row(index) + ATTEMPT] = float(attempt.name)
    beats.begin_step(1)
    beats.begin_step(2)
    while not shared[STOPS]:
        time.sleep(1 / speed)
        stuck, moves = int(shared[STUCK]), int(time.monotonic() * speed)
        if shared[DIES] == rank + 1:
            os.kill(os.getpid(), signal.SIGKILL)
        beats.phase, beats.phases = "forward and backward", 0
        beats.collectives = moves if not stuck else int(shared[STUCK_AT]) + (rank + 1 != stuck)
    if rank == 0:
        write_json(run / "resumable.json", {"step": 2}, is_durable=False)
    os._exit(0)


def be_launcher(arguments: list[str]) -> None:
    """Forks the ranks of a node, and ends as they do: one that is killed takes the others along."""
    file, node, ranks = Path(arguments[0]), int(arguments[1]), int(arguments[2])
    place = arguments.index("scaleup.worker")
    run, attempt = Path(arguments[place + 1]), arguments[arguments.index("--attempt") + 1]
    local = arguments[arguments.index("--local") + 1] if "--local" in arguments else ""
    shared, children = Shared(file), []
    import scaleup.distributed.heartbeat  # noqa: F401  once, not in each rank

    for number in range(ranks):
        if not (pid := os.fork()):
            index = node * (ranks + 1) + 1 + number
            be_rank(shared, run, run / "attempts" / attempt, local, node, node * ranks + number, index)
        children.append(pid)
    while children:
        pid, status = os.wait()
        children.remove(pid)
        if status:
            for child in children:
                os.kill(child, signal.SIGKILL)
            os._exit(1)


def be_agent(shared: Shared, file: Path, run: Any, plan: Any, node: int, ranks: int) -> int:
    """Is a node's agent; returns its exit code."""
    import subprocess

    from rich.console import Console

    from scaleup.launcher import hung, peers, restarts
    from scaleup.launcher.agent import NodeAgent

    speed = shared[SPEED]
    for module in (hung, peers, restarts):
        for name in vars(module).keys() & {"LOOK_SECONDS", "BEAT_SECONDS", "NEWS_SECONDS", "NEWS_LASTS_SECONDS"}:
            setattr(module, name, getattr(module, name) / speed)
    tempfile.tempdir = str(run.path.parent.parent / "tmp")  # stands for each node's own disk
    count(shared, node * (ranks + 1), run.path)

    def start(agent: Any, group: Any, restart: int = 0) -> Any:
        if node == 0:
            shared[LED] = time.monotonic()
        command = [sys.executable, "-I", "-S", __file__, str(file), str(node), str(ranks)]
        command += ["accelerate.commands.launch", "-m", "scaleup.worker", str(run.path), group.name]
        command += ["--attempt", str(agent.attempt.number), "--node", str(node)]
        command += ["--local", str(agent.local.path)] if hasattr(agent, "local") else []
        return subprocess.Popen(command, start_new_session=True, env={"SCALEUP_TREE": str(ROOT)})

    NodeAgent._start = start  # type: ignore[method-assign]
    with (run.path.parent / f"node{node}.txt").open("w", buffering=1) as printed:
        os.dup2(printed.fileno(), 2)
        console = Console(file=printed, width=200)
        if node:
            return restarts.join_run(run, console, node, 600)
        return restarts.lead_run(run, plan, console, 5)


def fork_agent(body: Callable[[], int], node: int) -> int:
    """Forks an agent, on a host of its own where we may make one. Returns the process id to wait for and to signal."""
    if pid := os.fork():
        return pid
    code = 70
    try:
        if os.geteuid() == 0:
            own_host(node)
        code = body()
    except BaseException as error:
        print(f"node {node}: {type(error).__name__}: {error}", file=sys.stderr)
    finally:
        os._exit(code)


def own_host(node: int) -> None:
    """Goes on as the first process of a host: with its own process table and name. The process that was there passes
    signals on."""
    import ctypes
    import socket

    libc = ctypes.CDLL(None, use_errno=True)
    new_mounts, new_names, new_processes = 0x20000, 0x4000000, 0x20000000
    if libc.unshare(new_mounts | new_names | new_processes):
        raise OSError(ctypes.get_errno(), "unshare")
    socket.sethostname(f"host{node}")
    if child := os.fork():
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda number, _: os.kill(child, number))
        _, status = os.waitpid(child, 0)
        os._exit(os.waitstatus_to_exitcode(status) & 0xFF)
    recursive_private, nothing = 0x4000 | 0x40000, None
    libc.mount(b"none", b"/", nothing, recursive_private, nothing)
    libc.mount(b"proc", b"/proc", b"proc", 0, nothing)


if __name__ == "__main__":
    be_launcher(sys.argv[1:])
