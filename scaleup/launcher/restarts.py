"""A node's agent through all attempts of one start: the first node leads, the others follow.

An attempt begins only after every node has said that nothing of the one before is alive, each with launchers of its
own: torchrun's `--max_restarts` keeps its store, and new workers met what old ones had left there."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from rich.console import Console

from scaleup.artifacts.run_folder import Attempt, RunFolder
from scaleup.errors import ScaleupError
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
from scaleup.launcher.node import POLL_SECONDS, NodeAgent
from scaleup.launcher.nodes import Newcomer, NodeGone, Nodes
from scaleup.launcher.prepare import renew_bridge
from scaleup.launcher.processes import end_leftovers
from scaleup.launcher.signals import StopSignals
from scaleup.launcher.watch import Watch
from scaleup.plan.types import Plan

Found = TypeVar("Found")


def run_node(run: RunFolder, plan: Plan, console: Console, max_restarts: int = 0, node_rank: int = 0) -> int:
    """This node's part of a prepared run, again and again if need be, until the run has ended. The exit code."""
    with StopSignals() as signals:
        attempts = Attempts(run, plan, console, signals, Nodes(run, node_rank, plan.groups[0].num_nodes), node_rank)
        code = attempts.follow() if node_rank else attempts.lead(max_restarts)
    if code == RESUMABLE:
        console.print(f"{run.path} was stopped and can go on: run the same command with --resume", highlight=False)
    return code


@dataclass
class Attempts:
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
            attempt = self.run.new_attempt()
            renew_bridge(self.run, self.plan)
            self.nodes.enter(attempt)
            ending = self._whole(attempt, self._part(attempt))
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

    def follow(self) -> int:
        """Take part in every attempt that the first node begins, until it says that the run is over."""
        newcomer = Newcomer(self.run)
        try:
            attempt = self._wait_for(newcomer.attempt, or_signal=True)
        except NodeGone as gone:
            raise ScaleupError.of(f"run {self.run.path}", str(gone), "start `scaleup run` on the first node") from None
        if attempt is None:
            return RESUMABLE
        self.plan = Plan.read(self.run.plan_file)  # the first node may have made another since
        while attempt:
            end_leftovers(self.run.path, attempt.number, self.console)
            self.nodes.enter(attempt)
            part = self._part(attempt)
            try:
                last, attempt = attempt, self._next(part)
            except NodeGone as gone:
                return verdict(self.run, last, Ending("failed", str(gone)))
        word = self.nodes.last_word()
        return verdict(self.run, last, *word) if word else RESUMABLE

    def _part(self, attempt: Attempt) -> Part:
        """Our part of an attempt, from the first process to the end of the last one."""
        console = Console(quiet=True) if self.node_rank else self.console  # one node shows the progress
        agent = NodeAgent(self.run, self.plan, attempt, self.nodes, self.signals, self.node_rank)
        try:
            with Watch(attempt, console, [group.name for group in self.plan.groups]) as watch:
                part = agent.run_groups(watch)
        except NodeGone as gone:
            part = Part(failed=str(gone), signalled=self.signals.count > 0)
        self.nodes.end(part)
        return part

    def _whole(self, attempt: Attempt, own: Part) -> Ending:
        """How the attempt ended on all nodes; known once all have ended their part."""
        try:
            others = self._wait_for(self.nodes.parts)
        except NodeGone as gone:
            ending = ending_of(self.run, attempt, [own])
            return Ending("failed", str(gone), final=True) if ending.kind == "failed" else ending
        return ending_of(self.run, attempt, [own, *(others or [])])

    def _ended_within(self, seconds: float) -> Ending | None:
        """Wait; how the run ended instead of starting again, if a signal came to any node or an agent is gone."""
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
        """The next attempt, or None when there is none. The first node is told of a signal that comes while we wait."""
        while not self.signals.at_once and self.nodes.last_word() is None:
            if attempt := self.nodes.next_attempt():
                return attempt
            if self.signals.count and not part.signalled:
                part = Part(part.failed, part.killed, signalled=True)
                self.nodes.end(part)
            time.sleep(POLL_SECONDS)
        return None

    def _wait_for(self, find: Callable[[], Found | None], or_signal: bool = False) -> Found | None:
        while (found := find()) is None and not self.signals.at_once and not (or_signal and self.signals.count):
            time.sleep(POLL_SECONDS)
        return found
