"""This module runs one node's part of one attempt: it starts the node's processes of every group, watches them, passes
signals on, and ends them."""

from __future__ import annotations

import ctypes
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial

from scaleup.artifacts.checkpoints import memory_folder
from scaleup.artifacts.local_folder import LocalFolder
from scaleup.artifacts.run_folder import Attempt, RunFolder
from scaleup.children import python_environment, visible_devices
from scaleup.launcher.ending import Part, group_ended, killed_worker
from scaleup.launcher.hung import HungWorkers
from scaleup.launcher.peers import Nodes
from scaleup.launcher.processes import STOP, RunProcess, kill, processes_of, signal_all
from scaleup.launcher.rendezvous import Rendezvous, network_environment, rendezvous_arguments
from scaleup.launcher.reward_group import END_SECONDS, Service
from scaleup.launcher.signals import StopSignals
from scaleup.launcher.watch import Watch
from scaleup.plan.types import GroupPlan, Plan

GRACE_SECONDS = 20.0
CLOSING_SECONDS = 10.0
"""Counts the seconds that groups that serve may take to end by themselves."""
POLL_SECONDS = 0.1
LIBC = ctypes.CDLL(None)  # loaded here, so that a forked child makes two system calls and nothing else
SIG_IGN = 1
NOT_MET = "torch.distributed.Dist"
"""With it begin the names of torch's errors of connections between processes."""
LAUNCHER_ENVIRONMENT = {"PET_SIGNALS_TO_HANDLE": "SIGQUIT"}
"""Keeps torchrun from taking SIGTERM: it would give its workers 30 s, and kill them while they save."""


@dataclass
class NodeAgent:
    """Runs the groups of a plan that are on this node, for one attempt."""

    run: RunFolder
    plan: Plan
    attempt: Attempt
    nodes: Nodes
    signals: StopSignals
    local: LocalFolder
    node_rank: int = 0
    rendezvous: Rendezvous | None = None
    _launchers: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    _services: dict[str, Service] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._hung = HungWorkers(self.plan, self.node_rank, self.local, self.nodes, self._processes)

    def run_groups(self, watch: Watch) -> Part:
        """Start everything and stay until it has ended; nothing of it runs on afterwards."""
        with self.signals.passed_to(self._on_signal):
            try:
                self._start_all()
                while self._is_running() and not self._must_end():
                    self._heed_others()
                    if (line := self._hung.look()) and self.signals.count:  # else it is the cause that is shown
                        watch.say(line)
                    self._tend_services(watch)
                    watch.refresh()
                    time.sleep(POLL_SECONDS)
                watch.refresh()
                failed, signalled = self._failed(), self.signals.count > 0  # before we end what is left
                if not failed:
                    self._let_services_end()
            finally:
                self._end_all()
                self._forget_copies()
        gave_up = [service for service in self._services.values() if service.failed]
        killed = [killed_worker(self.attempt, group.name, self.node_rank, self.local) for group in self._leading()]
        killed = [self._hung.sentence, *killed, *(service.killed for service in gave_up)]
        if not gave_up:  # the errors of a group whose client was gone are not the cause
            for name in self._services:
                self.attempt.forget_errors(name)
        return Part(failed, next(filter(None, killed), ""), signalled)

    def _forget_copies(self) -> None:
        """Remove what killed workers have left in main memory of a checkpoint, and of weights for an engine."""
        for group in self._leading():
            a_node = group.num_processes // group.num_nodes
            first = (self.node_rank - group.first_node) * a_node
            for rank in range(first, first + a_node):
                shutil.rmtree(memory_folder(self.run.path, rank), ignore_errors=True)
        for name in self._services:
            shutil.rmtree(memory_folder(self.run.path, name), ignore_errors=True)

    def _here(self) -> list[GroupPlan]:
        return [group for group in self.plan.groups if group.is_on(self.node_rank)]

    def _leading(self) -> list[GroupPlan]:
        """Return this node's groups whose end is the run's."""
        return [group for group in self._here() if not group.serves]

    def _start_all(self) -> None:
        for group in self._here():
            if self.signals.count or self.nodes.another_failed():
                break
            if group.serves:
                self._services[group.name] = Service(self.run, self.attempt, self.local, group.name)
                self._start_service(self._services[group.name])
            else:
                self._launchers[group.name] = self._start(group)
        if self.signals.count:  # one that came in between did not reach every launcher
            self._on_signal()

    def _start_service(self, service: Service) -> None:
        group = service.group_to_start()
        self._launchers[service.name] = self._start(group, service.starts - 1)

    def _tend_services(self, watch: Watch) -> None:
        """Start services again that died, or are to have another size, while the group they serve goes on."""
        for service in self._services.values():
            launcher = self._launchers[service.name]
            if launcher.poll() is None:
                if service.must_end(self._hung.frozen_in(service.name)):
                    service.tell()  # also one that hangs
                    signal_all([worker for worker in self._workers() if worker.group == service.name], STOP)
                elif service.told_at is not None and time.monotonic() - service.told_at > END_SECONDS:
                    kill(partial(self._processes, service.name))
                continue
            if line := service.note_end(launcher, self.node_rank):
                watch.say(line)
            if service.may_start():
                kill(partial(self._processes, service.name))  # what a launcher that died has left
                self.local.forget(service.name)
                self.attempt.forget_errors(service.name)
                self._start_service(service)

    def _let_services_end(self) -> None:
        """Wait until services have ended, which they do by themselves once the group they serve is done."""
        deadline = time.monotonic() + CLOSING_SECONDS
        while time.monotonic() < deadline and any(self._launchers[name].poll() is None for name in self._services):
            time.sleep(POLL_SECONDS)

    def _start(self, group: GroupPlan, restart: int = 0) -> subprocess.Popen[bytes]:
        environment = python_environment(group.threads_per_process)
        if group.generator is not None:
            command = [group.generator.python, "-m", "scaleup.generator.engine", str(self.run.path), group.name]
            environment |= {"PYTHONPATH": str(self.run.engine_path)}
            if group.device == "cuda":
                environment["CUDA_VISIBLE_DEVICES"] = visible_devices(group.first_device, group.num_processes)
        else:
            launch_file = str(self.run.launch_file(group.name))
            command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", launch_file]
            command += rendezvous_arguments(group, self.rendezvous, self.node_rank)
            command += ["-m", "scaleup.worker", str(self.run.path), group.name]
            environment |= network_environment(group, self.rendezvous) | LAUNCHER_ENVIRONMENT
        command += ["--attempt", str(self.attempt.number), "--node", str(self.node_rank)]
        command += ["--local", str(self.local.path)]
        with self.attempt.launcher_log(group.name, self.node_rank, restart).open("ab") as file:
            return subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
                preexec_fn=_leave_signals_to_the_agent,
            )

    def _is_running(self) -> bool:
        """Return whether a group that leads still runs: one of this node, or if it has none, of the others."""
        leading = [group.name for group in self._leading()]
        if not leading:
            return not self.nodes.have_ended(range(self.plan.groups[0].num_nodes))
        return any(self._launchers[name].poll() is None for name in leading if name in self._launchers)

    def _heed_others(self) -> None:
        if not self.signals.count and self.nodes.another_stops():
            self.signals.request()

    def _must_end(self) -> bool:
        """Return whether a group has failed, here or on another node: the others would only wait for it. After a signal
        ours end one by one, unless one hangs."""
        return (
            self.nodes.another_failed()
            or bool(self._hung.sentence)
            or (not self.signals.count and bool(self._failed()))
        )

    def _failed(self) -> str:
        """Return which group failed by itself. What a launcher makes of a run that was stopped does not count."""
        codes = {name: launcher.poll() for name, launcher in self._launchers.items() if name not in self._services}
        failed = [self._hung.sentence] if self._hung.sentence else []
        failed += [self._ended(name, code) for name, code in codes.items() if code]
        failed += [service.failed for service in self._services.values() if service.failed]
        missing = [f"group {group.name} was not started" for group in self._leading() if group.name not in codes]
        sentence = next(iter(failed + missing), "")
        return "" if sentence and self.run.resumable_file.is_file() else sentence

    def _ended(self, group: str, code: int) -> str:
        """Returns the sentence for a launcher that failed; where its nodes have not met, with where they were to."""
        sentence = group_ended(self.attempt, group, self.node_rank, code)
        if self.rendezvous is None or NOT_MET not in sentence:
            return sentence
        place = f"{self.rendezvous.address}:{self.rendezvous.port}"
        return f"{sentence}; the nodes meet at {place}: see parallel.main_address, parallel.interface"

    def _on_signal(self) -> None:
        """Let the workers save and stop after a first signal; end them at once after a second Ctrl-C. A group that
        serves is needed until the one it serves has stopped, here or on other nodes."""
        if self.signals.at_once:
            self._kill_all()
            return
        self.nodes.tell_to_stop()
        if not self._leading():
            return
        workers = [process for process in self._workers() if process.group not in self._services]
        signal_all(workers, STOP)
        if not workers:  # not up yet, so there is nothing to save
            self._kill_all()

    def _processes(self, group: str | None = None) -> list[RunProcess]:
        """Return this node's processes of this attempt and of one group: launchers, and workers also before they
        register."""
        ours = (self.attempt.number, self.node_rank)
        processes = [process for process in processes_of(self.run.path) if (process.attempt, process.node) == ours]
        return [process for process in processes if group in (None, process.group)]

    def _workers(self) -> list[RunProcess]:
        """Return the workers that have posted a heartbeat, and so handle signals."""
        registered = set(self.local.pids().values())
        return [process for process in self._processes() if process.pid in registered]

    def _end_all(self) -> None:
        if self._hung.sentence:  # no rank can save without the others, and a frozen one hears of nothing else
            self._kill_all()
        workers = self._workers()
        saving = {worker.group for worker in workers}
        signal_all(workers, STOP)
        kill(lambda: [process for process in self._processes() if process.group not in saving])
        deadline = time.monotonic() + GRACE_SECONDS
        for launcher in self._launchers.values():
            with suppress(subprocess.TimeoutExpired):
                launcher.wait(max(0.1, deadline - time.monotonic()))
        self._kill_all()
        for launcher in self._launchers.values():
            launcher.poll()  # nobody else reads how it ended

    def _kill_all(self) -> None:
        kill(self._processes)


def _leave_signals_to_the_agent() -> None:
    """Ignores SIGTERM and SIGHUP in a launcher, and die with the agent (Linux: prctl PR_SET_PDEATHSIG).

    Slurm signals all processes of a job, and a launcher that took SIGTERM would end workers that still save. If the
    agent is killed outright, the kernel kills its launchers and signals their workers."""
    LIBC.prctl(1, signal.SIGKILL)
    LIBC.signal(signal.SIGTERM, SIG_IGN)
    LIBC.signal(signal.SIGHUP, SIG_IGN)
