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
from functools import partial

from scaleup.artifacts.files import read_json
from scaleup.artifacts.run_folder import Attempt, RunFolder
from scaleup.launcher.ending import Part, killed_worker
from scaleup.launcher.nodes import Nodes
from scaleup.launcher.processes import RunProcess, kill, processes_of, signal_all
from scaleup.launcher.service import END_SECONDS, Service
from scaleup.launcher.signals import StopSignals
from scaleup.launcher.watch import Watch
from scaleup.plan.types import GroupPlan, Plan

GRACE_SECONDS = 20.0
CLOSING_SECONDS = 10.0
"""How long groups that serve may take to end by themselves."""
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
    _services: dict[str, Service] = field(default_factory=dict)

    def run_groups(self, watch: Watch) -> Part:
        """Start everything and stay until it has ended; nothing of it runs on afterwards."""
        with self.signals.passed_to(self._on_signal):
            try:
                self._start_all()
                while self._is_running() and not self._must_end():
                    self._tend_services(watch)
                    watch.refresh()
                    time.sleep(POLL_SECONDS)
                watch.refresh()
                failed, signalled = self._failed(), self.signals.count > 0  # before we end what is left
                if not failed:
                    self._let_services_end()
            finally:
                self._end_all()
        given_up = [service for service in self._services.values() if service.failed]
        killed = [killed_worker(self.attempt, group.name, self.node_rank) for group in self._leading()]
        killed += [service.killed for service in given_up]
        if not given_up:  # what a group felt when the one it serves was gone is not how that came to be
            for name in self._services:
                self.attempt.forget_errors(name)
        return Part(failed, next(filter(None, killed), ""), signalled)

    def _here(self) -> list[GroupPlan]:
        return [group for group in self.plan.groups if self.node_rank < group.num_nodes]

    def _leading(self) -> list[GroupPlan]:
        """The groups whose end is the run's."""
        return [group for group in self._here() if not group.serves]

    def _start_all(self) -> None:
        for group in self._here():
            if self.signals.count or self.nodes.another_failed():
                break
            if group.serves:
                self._services[group.name] = Service(self.run, self.attempt, group.name)
                self._start_service(self._services[group.name])
            else:
                self._launchers[group.name] = self._start(group)
        if self.signals.count:  # one that came in between has found a launcher less
            self._on_signal()

    def _start_service(self, service: Service) -> None:
        group = service.group_to_start()
        self._launchers[service.name] = self._start(group, service.starts - 1)

    def _tend_services(self, watch: Watch) -> None:
        """Start those again that died, or are to have another size, while the group they serve goes on."""
        for service in self._services.values():
            launcher = self._launchers[service.name]
            if launcher.poll() is None:
                if service.must_end():
                    service.tell()  # also one that hangs
                    signal_all(self._processes(service.name), signal.SIGTERM)
                elif service.told_at is not None and time.monotonic() - service.told_at > END_SECONDS:
                    kill(partial(self._processes, service.name))
                continue
            if line := service.note_end(launcher, self.node_rank):
                watch.say(line)
            if service.may_start():
                kill(partial(self._processes, service.name))  # what a launcher that died has left
                self.attempt.forget_workers(service.name)
                self._start_service(service)

    def _let_services_end(self) -> None:
        """They end by themselves when the group they serve has no more to ask."""
        deadline = time.monotonic() + CLOSING_SECONDS
        while time.monotonic() < deadline and any(self._launchers[name].poll() is None for name in self._services):
            time.sleep(POLL_SECONDS)

    def _start(self, group: GroupPlan, restart: int = 0) -> subprocess.Popen[bytes]:
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
        with self.attempt.launcher_log(group.name, self.node_rank, restart).open("ab") as file:
            return subprocess.Popen(
                command, stdout=file, stderr=subprocess.STDOUT, start_new_session=True, preexec_fn=_end_with_parent
            )

    def _is_running(self) -> bool:
        return any(
            self._launchers[group.name].poll() is None for group in self._leading() if group.name in self._launchers
        )

    def _must_end(self) -> bool:
        """When a group has failed, here or on another node, the others would only wait for it. After a signal ours
        end one by one."""
        return self.nodes.another_failed() or (not self.signals.count and bool(self._failed()))

    def _failed(self) -> str:
        """Which group has gone wrong by itself. What a launcher makes of a run that was stopped does not count."""
        if self.run.resumable_file.is_file():
            return ""
        codes = {name: launcher.poll() for name, launcher in self._launchers.items() if name not in self._services}
        failed = [f"group {name} ended with exit code {code}" for name, code in codes.items() if code]
        failed += [service.failed for service in self._services.values() if service.failed]
        missing = [f"group {group.name} was not started" for group in self._leading() if group.name not in codes]
        return next(iter(failed + missing), "")

    def _on_signal(self) -> None:
        """The first signal lets the workers save and stop; a second Ctrl-C ends them at once. A group that serves is
        needed until the one it serves has stopped."""
        if self.signals.at_once:
            self._kill_all()
            return
        workers = [process for process in self._workers() if process.group not in self._services]
        signal_all(workers, signal.SIGTERM)
        if not workers:  # not up yet, so there is nothing to save
            for launcher in self._launchers.values():
                launcher.terminate()

    def _processes(self, group: str | None = None) -> list[RunProcess]:
        """This node's, of this attempt, and of one group: launchers, and workers also before they register."""
        ours = (self.attempt.number, self.node_rank)
        found = [process for process in processes_of(self.run.path) if (process.attempt, process.node) == ours]
        return [process for process in found if group in (None, process.group)]

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
