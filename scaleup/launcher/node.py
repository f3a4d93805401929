"""The node agent: starts this node's processes of every group, watches them, passes signals on, says how it ended.

Exit codes: 0 finished, 2 a mistake of the user's, 75 stopped by a signal, to be resumed (EX_TEMPFAIL), 1 others."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Set
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from scaleup.artifacts.checkpoints import latest_checkpoint
from scaleup.artifacts.files import read_json
from scaleup.artifacts.run_folder import Attempt, RunFolder
from scaleup.errors import Problem, ScaleupError
from scaleup.launcher.watch import Watch
from scaleup.plan.types import GroupPlan, Plan

RESUMABLE = 75
GRACE_SECONDS = 20.0
LIBC = ctypes.CDLL(None)  # loaded here, so that a forked child makes one system call and nothing else


@dataclass
class NodeAgent:
    run: RunFolder
    plan: Plan
    attempt: Attempt
    node_rank: int = 0
    _launchers: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    _signals: int = 0

    def run_groups(self, watch: Watch) -> int:
        """Start everything and stay until it has ended; nothing of it runs on afterwards. The exit code."""
        before = {number: signal.signal(number, self._on_signal) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            for group in self.plan.groups:
                self._launchers[group.name] = self._start(group)
            while any(launcher.poll() is None for launcher in self._launchers.values()):
                watch.refresh()
                time.sleep(0.1)
            watch.refresh()
        finally:
            self._end_all()
            for number, handler in before.items():
                signal.signal(number, handler)
        return self._verdict()

    def _start(self, group: GroupPlan) -> subprocess.Popen[bytes]:
        command = [
            sys.executable,
            "-m",
            "accelerate.commands.launch",
            "--config_file",
            str(self.run.launch_file(group.name)),
        ]
        if group.num_nodes > 1:
            command += ["--machine_rank", str(self.node_rank)]
        command += ["-m", "scaleup.worker", str(self.run.path), group.name, "--attempt", self.attempt.path.name]
        log = self.attempt.logs / f"{group.name}-node{self.node_rank}.log"
        with log.open("ab") as file:
            return subprocess.Popen(
                command, stdout=file, stderr=subprocess.STDOUT, start_new_session=True, preexec_fn=_end_with_parent
            )

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        """The first signal lets the workers save and stop; a second Ctrl-C ends them at once."""
        self._signals += 1
        if self._signals > 1 and number == signal.SIGINT:
            self._kill_all()
            return
        workers = self._workers()
        for pid in workers:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
        if not workers:  # not up yet, so there is nothing to save
            for launcher in self._launchers.values():
                launcher.terminate()

    def _workers(self) -> list[int]:
        """Process ids of this attempt's workers on this host."""
        places = [read_json(file) for file in self.attempt.workers.glob("[!.]*.json")]
        return [place["pid"] for place in places if place["host"] == socket.gethostname()]

    def _end_all(self) -> None:
        for launcher in self._launchers.values():
            if launcher.poll() is None:
                launcher.terminate()
        deadline = time.monotonic() + GRACE_SECONDS
        for launcher in self._launchers.values():
            with suppress(subprocess.TimeoutExpired):
                launcher.wait(max(0.1, deadline - time.monotonic()))
        self._kill_all()

    def _kill_all(self) -> None:
        """Also a worker that has not registered yet: a single one lives in its launcher's session."""
        sessions = {launcher.pid for launcher in self._launchers.values()}
        for pid in {*self._workers(), *_processes_in(sessions)}:
            if _is_ours(pid):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    def _verdict(self) -> int:
        failed = {name: code for name, launcher in self._launchers.items() if (code := launcher.wait())}
        if self.run.resumable_file.is_file():
            return RESUMABLE
        error = self.attempt.first_error()
        if error and error["problems"]:
            raise ScaleupError([Problem(**problem) for problem in error["problems"]])
        if not failed:
            return 0
        if self._signals and not error:
            return RESUMABLE  # stopped before there was anything to save
        name, code = next(iter(failed.items()))
        latest = latest_checkpoint(self.run.checkpoints)
        kept = (
            f"the newest checkpoint is step {latest.step}; continue with --resume"
            if latest
            else "no checkpoint was saved"
        )
        if error:
            print(error["traceback"], file=sys.stderr)
        what = f"{error['rank']} failed: {error['error']}" if error else f"group {name} ended with exit code {code}"
        print(f"error: {what}\n  {kept}\n  logs: {self.attempt.logs}", file=sys.stderr)
        return 1


def _processes_in(sessions: Set[int]) -> Iterator[int]:
    for entry in Path("/proc").iterdir():
        with suppress(ValueError, ProcessLookupError):
            if os.getsid(pid := int(entry.name)) in sessions:
                yield pid


def _is_ours(pid: int) -> bool:
    """Ids are used again: kill only what still is a process of a scaleup run."""
    with suppress(OSError):
        return b"scaleup.worker" in Path(f"/proc/{pid}/cmdline").read_bytes()
    return False


def _end_with_parent() -> None:
    """If this agent is killed outright, the kernel tells its launchers (Linux: prctl PR_SET_PDEATHSIG)."""
    LIBC.prctl(1, signal.SIGTERM)
