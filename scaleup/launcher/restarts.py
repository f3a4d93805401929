"""This module takes a node's agent through all attempts of one start: the first node leads, the others follow.

An attempt begins only after every node has said that nothing of the one before is alive, each with launchers of its
own: torchrun's `--max_restarts` keeps its store, and new workers met what old ones had left there."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from rich.console import Console

from scaleup.artifacts.local_folder import LocalFolder, local_folder
from scaleup.artifacts.run_folder import Attempt, RunFolder
from scaleup.errors import ScaleupError
from scaleup.launcher.agent import POLL_SECONDS, NodeAgent
from scaleup.launcher.ending import (
    RESUMABLE,
    Ending,
    Part,
    ending_of,
    may_restart,
    restart_delay,
    restart_line,
    verdict,
)
from scaleup.launcher.peers import NEWS_SECONDS, Newcomer, NodeGone, Nodes, rendezvous_of
from scaleup.launcher.prepare import renew_bridges, written
from scaleup.launcher.processes import end_leftovers
from scaleup.launcher.refusal import Refusals
from scaleup.launcher.rendezvous import Rendezvous, new_rendezvous, problems_here
from scaleup.launcher.signals import StopSignals
from scaleup.launcher.watch import Watch
from scaleup.plan.types import Plan

Value = TypeVar("Value")
NOTICE_SECONDS = 5.0
SHOWN = 8
"""Bounds the nodes that a line names."""


def lead_run(run: RunFolder, plan: Plan, console: Console, max_restarts: int = 0) -> int:
    """Run the first node's part of a prepared run, again and again if need be, until it has ended. Return the exit
    code."""
    with StopSignals() as signals:
        attempts = Attempts(run, plan, console, signals, Nodes(run, 0, plan.num_nodes), 0)
        return _exit_code(run, attempts.lead(max_restarts), console)


def join_run(run: RunFolder, console: Console, node_rank: int, patience_seconds: float) -> int:
    """Run a further node's part, from the attempt that the first node begins or is at. Return the exit code.

    Raises ScaleupError if node 0 does not appear in time, if it refuses the run, or if the run has fewer nodes."""
    with StopSignals() as signals:
        newcomer, refusals, notice = Newcomer(run, patience_seconds), Refusals(run), Notice(console)

        def first_attempt() -> Attempt | None:
            notice(f"waiting for node 0 to begin in {run.path}")
            refusals.check()
            return newcomer.attempt()

        try:
            attempt = wait_for(first_attempt, signals, or_signal=True, every=NEWS_SECONDS)
        except NodeGone as gone:
            remedy = "start the same command on the first node, and name a runs_dir that all nodes share"
            raise ScaleupError.of(f"run {run.path}", str(gone), remedy) from None
        if attempt is None:
            return _exit_code(run, RESUMABLE, console)
        plan = Plan.read(run.plan_file)
        check_node_rank(node_rank, plan.num_nodes)  # it may have been started with another config than ours
        attempts = Attempts(run, plan, console, signals, Nodes(run, node_rank, plan.num_nodes), node_rank)
        return _exit_code(run, attempts.follow(attempt), console)


def check_node_rank(node_rank: int, num_nodes: int) -> None:
    """Refuse a node that a run does not have. Raises ScaleupError."""
    if node_rank >= num_nodes:
        remedy = f"use 0 to {num_nodes - 1}" if num_nodes > 1 else "set parallel.num_nodes"
        raise ScaleupError.of("--node-rank", f"the run has no node {node_rank}, but {num_nodes}", remedy)


def _exit_code(run: RunFolder, code: int, console: Console) -> int:
    if code == RESUMABLE:
        console.print(f"{run.path} was stopped and can go on: run the same command with --resume", highlight=False)
    return code


class Notice:
    """Says once whom this node waits for, after a while: nodes that are started together need not hear of it."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._at = time.monotonic() + NOTICE_SECONDS

    def __call__(self, line: str) -> None:
        if time.monotonic() > self._at:
            self._at = math.inf
            self._console.print(line, highlight=False, markup=False, soft_wrap=True)


def wait_for(
    find: Callable[[], Value | None], signals: StopSignals, or_signal: bool = False, every: float = POLL_SECONDS
) -> Value | None:
    """Return what `find` returns once it is not None; None after a second Ctrl-C, or after any signal."""
    while (value := find()) is None and not signals.at_once and not (or_signal and signals.count):
        time.sleep(every)
    return value


@dataclass
class Attempts:
    """Takes one node's agent through all attempts of one start."""

    run: RunFolder
    plan: Plan
    console: Console
    signals: StopSignals
    nodes: Nodes
    node_rank: int

    def lead(self, max_restarts: int) -> int:
        """Begin attempts until one is the last, and tell the other nodes."""
        restarts = 0
        while True:
            rendezvous = new_rendezvous(self.plan)
            with written(self.run):
                attempt = self.run.new_attempt()
                renew_bridges(self.run, self.plan, rendezvous)
                self.nodes.enter(attempt, rendezvous)
            ending = self._missing() or self._whole(attempt, self._part(attempt))
            if not may_restart(ending, restarts, max_restarts):
                break
            if not self.signals.count:
                restarts += 1
                line = restart_line(self.run, ending, restarts, max_restarts)
                self.console.print(line, highlight=False, markup=False, soft_wrap=True)
            if instead := self._ended_within(restart_delay(restarts)):
                ending = instead
                break
            self.run.resumable_file.unlink(missing_ok=True)  # of a group that saved while another one was dead
        self.nodes.close(ending, restarts)
        return verdict(self.run, attempt, ending, restarts)

    def follow(self, first: Attempt) -> int:
        """Take part in every attempt that the first node begins, until it says that the run is over."""
        attempt: Attempt | None = first
        last, was_here = first, first.node_file(self.node_rank).is_file()
        while attempt:
            end_leftovers(self.run.path, attempt.number, self.console, self.node_rank if was_here else None)
            self.nodes.enter(attempt)
            part = self._lost_part() if was_here else self._part(attempt)
            was_here = False
            try:
                last, attempt = attempt, self._next(part)
            except NodeGone as gone:
                return verdict(self.run, last, Ending("failed", str(gone)))
        closed = self.nodes.final_ending()
        return verdict(self.run, last, *closed) if closed else RESUMABLE

    def _lost_part(self) -> Part:
        """End our part of an attempt whose agent on this node is gone: new workers cannot join the others."""
        part = Part(failed=f"node {self.node_rank}: its agent was started again")
        self.nodes.end(part)
        return part

    def _part(self, attempt: Attempt) -> Part:
        """Run our part of an attempt, from the first process to the end of the last one."""
        rendezvous = None
        if self.plan.num_nodes > 1:  # its file is replaced every second: a network file system may miss it once
            rendezvous = wait_for(lambda: rendezvous_of(attempt), self.signals, every=NEWS_SECONDS)
        if self.node_rank and (problems := list(problems_here(self.plan, rendezvous, self.node_rank))):
            part = Part(failed=f"node {self.node_rank}: {problems[0]}")
            self.nodes.end(part)
            return part
        try:
            with local_folder(attempt.path / f"node{self.node_rank}") as local:
                part = self._agents_part(attempt, local, rendezvous)
        except NodeGone as gone:
            part = Part(failed=str(gone), signalled=self.signals.count > 0)
        except OSError as error:
            # of this node's: too many processes or open files, a file system that is gone, a plan that is damaged
            part = Part(failed=f"node {self.node_rank}: {error}", signalled=self.signals.count > 0)
        self.nodes.end(part)
        return part

    def _agents_part(self, attempt: Attempt, local: LocalFolder, rendezvous: Rendezvous | None) -> Part:
        agent = NodeAgent(self.run, self.plan, attempt, self.nodes, self.signals, local, self.node_rank, rendezvous)
        names = {group.name: f"{group.name}: " for group in self.plan.groups if group.first_node == self.node_rank}
        names |= {name: "" for name in names if name == self.plan.groups[0].name}  # the first group's needs none
        with Watch(local, self.console, names) as watch:
            if local.why:
                watch.say(
                    f"note: node {self.node_rank} has no folder of its own ({local.why}): heartbeats go to {local.path}"
                )
            return agent.run_groups(watch)

    def _missing(self) -> Ending | None:
        """Wait until all nodes are there, before anything starts that would wait for them in its own way. Return how
        the run ends if one does not come."""
        patience = self.plan.groups[0].timeout_seconds
        deadline, notice = time.monotonic() + patience, Notice(self.console)
        try:
            while (absent := self.nodes.absent()) and not self.signals.count:
                names = ", ".join(map(str, absent[:SHOWN])) + (
                    f" and {len(absent) - SHOWN} more" * (len(absent) > SHOWN)
                )
                notice(f"waiting for node {names} of {self.plan.num_nodes}: the same command, with --node-rank")
                if time.monotonic() > deadline:
                    what = f"node {names} of {self.plan.num_nodes} did not come to {self.run.path} within {patience} s"
                    return Ending("failed", f"{what}: was it started, and does it see this folder?", final=True)
                time.sleep(POLL_SECONDS)
        except NodeGone as gone:
            return Ending("failed", str(gone), final=True)
        return None

    def _whole(self, attempt: Attempt, own: Part) -> Ending:
        """Wait until all nodes have ended their part. Return how the attempt ended."""
        try:
            others = wait_for(self.nodes.parts, self.signals)
        except NodeGone as gone:
            ending = ending_of(self.run, attempt, [own])
            return Ending("failed", str(gone), final=True) if ending.kind == "failed" else ending
        return ending_of(self.run, attempt, [own, *(others or [])])

    def _ended_within(self, seconds: float) -> Ending | None:
        """Wait so long. Return how the run ends instead of starting again, if a signal came to any node or an agent is
        gone."""
        deadline = time.monotonic() + seconds
        try:
            while time.monotonic() < deadline:
                if self.signals.count or any(part.signalled for part in self.nodes.parts() or []):
                    return Ending("stopped")
                time.sleep(POLL_SECONDS)
        except NodeGone as gone:
            return Ending("failed", str(gone))
        return None

    def _next(self, part: Part) -> Attempt | None:
        """Wait for the next attempt; None if there is none. A signal that comes meanwhile is posted for node 0."""
        while not self.signals.at_once and self.nodes.final_ending() is None:
            if attempt := self.nodes.next_attempt():
                return attempt
            if self.signals.count and not part.signalled:
                part = Part(part.failed, part.killed, signalled=True)
                self.nodes.end(part)
            time.sleep(POLL_SECONDS)
        return None
