"""One node's part of one attempt: starts its processes of every group, watches them, passes signals on, ends them."""

from __future__ import annotations

import ctypes
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field

from scaleup.artifacts.files import read_json
from scaleup.artifacts.run_folder import Attempt, RunFolder
from scaleup.launcher.ending import Part, killed_worker
from scaleup.launcher.nodes import Nodes
from scaleup.launcher.processes import RunProcess, kill, processes_of, signal_all
from scaleup.launcher.signals import StopSignals
from scaleup.launcher.watch import Watch
from scaleup.plan.types import GroupPlan, Plan

GRACE_SECONDS = 20.0
POLL_SECONDS = 0.1
LIBC = ctypes.CDLL(None)  # loaded here, so that a forked child makes one system call and nothing else


@dataclass
class NodeAgent:
    run: RunFolder
    plan: Plan
    attempt: Attempt
    nodes: Nodes
    signals: StopSignals
    node_rank: int = 0
    _launchers: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def run_groups(self, watch: Watch) -> Part:
        """Start everything and stay until it has ended; nothing of it runs on afterwards."""
        with self.signals.passed_to(self._on_signal):
            try:
                self._start_all()
                while self._is_running() and not self._must_end():
                    watch.refresh()
                    time.sleep(POLL_SECONDS)
                watch.refresh()
                failed, signalled = self._failed(), self.signals.count > 0  # before we end what is left
            finally:
                self._end_all()
        killed = [killed_worker(self.attempt, group, self.node_rank) for group in self._launchers]
        return Part(failed, next(filter(None, killed), ""), signalled)

    def _start_all(self) -> None:
        for group in self.plan.groups:
            if self.signals.count or self.nodes.another_failed():
                break
            self._launchers[group.name] = self._start(group)
        if self.signals.count:  # one that came in between has found a launcher less
            self._on_signal()

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
        command += ["-m", "scaleup.worker", str(self.run.path), group.name]
        command += ["--attempt", str(self.attempt.number), "--node", str(self.node_rank)]
        with self.attempt.launcher_log(group.name, self.node_rank).open("ab") as file:
            return subprocess.Popen(
                command, stdout=file, stderr=subprocess.STDOUT, start_new_session=True, preexec_fn=_end_with_parent
            )

    def _is_running(self) -> bool:
        return any(launcher.poll() is None for launcher in self._launchers.values())

    def _must_end(self) -> bool:
        """When a group has failed, here or on another node, the others would only wait for it. After a signal ours
        end one by one."""
        return self.nodes.another_failed() or (not self.signals.count and bool(self._failed()))

    def _failed(self) -> str:
        """Which group has gone wrong by itself. What a launcher makes of a run that was stopped does not count."""
        if self.run.resumable_file.is_file():
            return ""
        codes = {name: launcher.poll() for name, launcher in self._launchers.items()}
        failed = [f"group {name} ended with exit code {code}" for name, code in codes.items() if code]
        missing = [f"group {group.name} was not started" for group in self.plan.groups if group.name not in codes]
        return next(iter(failed + missing), "")

    def _on_signal(self) -> None:
        """The first signal lets the workers save and stop; a second Ctrl-C ends them at once."""
        if self.signals.at_once:
            self._kill_all()
            return
        workers = self._workers()
        signal_all(workers, signal.SIGTERM)
        if not workers:  # not up yet, so there is nothing to save
            for launcher in self._launchers.values():
                launcher.terminate()

    def _processes(self) -> list[RunProcess]:
        """This node's, of this attempt: launchers, and workers also before they register."""
        ours = (self.attempt.number, self.node_rank)
        return [process for process in processes_of(self.run.path) if (process.attempt, process.node) == ours]

    def _workers(self) -> list[RunProcess]:
        """Those that have registered, and so know what a signal means."""
        places = [read_json(file) for file in self.attempt.workers.glob("[!.]*.json")]
        registered = {place["pid"] for place in places if place["host"] == socket.gethostname()}
        return [process for process in self._processes() if process.pid in registered]

    def _end_all(self) -> None:
        for launcher in self._launchers.values():
            if launcher.poll() is None:
                launcher.terminate()
        deadline = time.monotonic() + GRACE_SECONDS
        for launcher in self._launchers.values():
            with suppress(subprocess.TimeoutExpired):
                launcher.wait(max(0.1, deadline - time.monotonic()))
        self._kill_all()
        for launcher in self._launchers.values():
            launcher.poll()  # nobody else reads how it ended

    def _kill_all(self) -> None:
        kill(self._processes)


def _end_with_parent() -> None:
    """If this agent is killed outright, the kernel tells its launchers (Linux: prctl PR_SET_PDEATHSIG)."""
    LIBC.prctl(1, signal.SIGTERM)
