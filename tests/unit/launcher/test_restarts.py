"""One start of a run over several attempts, with parts that end as the test says."""

from __future__ import annotations

import io
import os
import signal
from concurrent.futures import ThreadPoolExecutor

import pytest
from rich.console import Console

from scaleup.artifacts.run_folder import Attempt, RunFolder
from scaleup.launcher import ending, restarts
from scaleup.launcher import peers as nodes
from scaleup.launcher.agent import NodeAgent
from scaleup.launcher.ending import RESUMABLE, Ending, Part
from scaleup.launcher.peers import Nodes
from scaleup.launcher.rendezvous import Rendezvous
from scaleup.launcher.restarts import Attempts, lead_run
from scaleup.launcher.signals import StopSignals
from scaleup.launcher.watch import Watch
from tests.unit.launcher.plans import group, plan_of

WELL = Part()
FAILED = Part("group policy ended with exit code 1")
KILLED = Part("group policy ended with exit code 1", "policy-rank1 was killed by signal 9")


class Ends:
    """Stands in for `NodeAgent.run_groups`: what each node's part comes to, attempt by attempt."""

    def __init__(self, *parts: Part, **of_node: list[Part]) -> None:
        self.parts = {"node0": list(parts), **of_node}
        self.began: list[tuple[int, int]] = []

    def run_groups(self, agent: NodeAgent, watch: Watch) -> Part:
        self.began.append((agent.attempt.number, agent.node_rank))
        return self.parts[f"node{agent.node_rank}"].pop(0)


def started(run: RunFolder, ends: Ends, monkeypatch: pytest.MonkeyPatch, max_restarts: int) -> tuple[int, list[str]]:
    monkeypatch.setattr(NodeAgent, "run_groups", lambda agent, watch: ends.run_groups(agent, watch))
    printed = io.StringIO()
    code = lead_run(run, plan_of(run), Console(file=printed, width=300), max_restarts)
    return code, printed.getvalue().splitlines()


@pytest.fixture(autouse=True)
def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ending, "FIRST_DELAY_SECONDS", 0.01)
    monkeypatch.setattr(restarts, "POLL_SECONDS", 0.005)
    for name in ("BEAT_SECONDS", "LOOK_SECONDS", "NEWS_SECONDS"):
        monkeypatch.setattr(nodes, name, 0.01)
    monkeypatch.setattr(nodes, "GONE_BEATS", 500)
    monkeypatch.setattr(restarts, "NEWS_SECONDS", 0.005)


def test_until_it_has_finished(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    code, lines = started(run, ends := Ends(KILLED, FAILED, WELL), monkeypatch, 3)
    assert code == 0
    assert lines == [
        "policy-rank1 was killed by signal 9; restart 1 of 3 from the start",
        "group policy ended with exit code 1; restart 2 of 3 from the start",
    ]
    assert ends.began == [(1, 0), (2, 0), (3, 0)]


def test_as_often_as_it_may(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, lines = started(run, Ends(KILLED, KILLED, KILLED), monkeypatch, 2)
    assert (code, len(lines)) == (1, 2)
    assert "  after 2 restarts\n" in capsys.readouterr().err


def test_a_plan_that_is_damaged_is_a_failure_of_the_node(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of which the other nodes hear."""

    def fails(agent: NodeAgent, watch: Watch) -> Part:
        raise OSError("plan.json: cannot be read -> mend it")

    monkeypatch.setattr(NodeAgent, "run_groups", fails)
    assert lead_run(run, plan_of(run), Console(quiet=True)) == 1
    assert "node 0: plan.json: cannot be read -> mend it" in capsys.readouterr().err


def test_a_signal_before_the_restart(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ending, "FIRST_DELAY_SECONDS", 60)
    monkeypatch.setattr(
        restarts, "restart_line", lambda *arguments: os.kill(os.getpid(), signal.SIGTERM) or "restart 1"
    )
    code, lines = started(run, ends := Ends(KILLED), monkeypatch, 2)
    assert code == RESUMABLE
    assert lines[0] == "restart 1"
    assert "was stopped and can go on" in lines[1]
    assert ends.began == [(1, 0)]


class TestTwoNodes:
    def ran(self, run: RunFolder, ends: Ends, monkeypatch: pytest.MonkeyPatch) -> tuple[int, int]:
        """Both agents, each in a thread; their exit codes."""
        monkeypatch.setattr(NodeAgent, "run_groups", lambda agent, watch: ends.run_groups(agent, watch))
        plan = plan_of(run, group(num_processes=2, num_nodes=2, main_address="localhost", main_port=1))
        plan.save(run.plan_file)
        first, second = (
            Attempts(run, plan, Console(quiet=True), StopSignals(), Nodes(run, rank, 2), rank) for rank in (0, 1)
        )
        newcomer = nodes.Newcomer(run, 30)

        def follow() -> int:
            attempt = restarts.wait_for(newcomer.attempt, second.signals)
            assert attempt is not None
            return second.follow(attempt)

        with ThreadPoolExecutor(2) as pool:
            followed = pool.submit(follow)
            return pool.submit(first.lead, 3).result(30), followed.result(30)

    def test_restart_together(self, run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
        ends = Ends(WELL, FAILED, WELL, node1=[KILLED, WELL, WELL])
        assert self.ran(run, ends, monkeypatch) == (0, 0)
        assert sorted(ends.began) == [(attempt, node) for attempt in (1, 2, 3) for node in (0, 1)]
        assert [number for number, _ in ends.began] == [1, 1, 2, 2, 3, 3], "no attempt begins before the last has ended"

    def test_fail_together(self, run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
        assert self.ran(run, Ends(*[WELL] * 4, node1=[KILLED] * 4), monkeypatch) == (1, 1)

    def test_stop_together(self, run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
        """Node 1 alone got the signal."""
        stopped = Part("group policy ended with exit code 1", signalled=True)
        assert self.ran(run, Ends(WELL, node1=[stopped]), monkeypatch) == (RESUMABLE, RESUMABLE)

    def test_an_agent_that_goes_ends_the_other(
        self, run: RunFolder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setattr(nodes, "GONE_BEATS", 5)
        monkeypatch.setattr(NodeAgent, "run_groups", lambda agent, watch: KILLED)
        plan = plan_of(run, group(num_processes=2, num_nodes=2, main_address="localhost", main_port=1))
        other = Nodes(run, 1, 2)
        monkeypatch.setattr(RunFolder, "new_attempt", lambda run: entered(other, new_attempt(run)))
        alone = Attempts(run, plan, Console(quiet=True), StopSignals(), Nodes(run, 0, 2), 0)
        assert alone.lead(3) == 1
        assert "error: node 1: its agent gave no sign of life" in capsys.readouterr().err

    def test_an_agent_that_is_started_again_does_not_join_what_goes_on(
        self, run: RunFolder, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Its node was at that attempt: the others end it, and all begin the next."""
        attempt = run.new_attempt()
        Nodes(run, 1, 2).enter(attempt)  # an agent that is gone
        leader = Nodes(run, 0, 2)
        leader.enter(attempt, Rendezvous("localhost", 1))
        plan = plan_of(run, group(num_processes=2, num_nodes=2))
        second = Attempts(run, plan, Console(quiet=True), StopSignals(), Nodes(run, 1, 2), 1)
        monkeypatch.setattr(NodeAgent, "run_groups", lambda *_: pytest.fail("new workers met old ones"))
        with ThreadPoolExecutor(1) as pool:
            followed = pool.submit(second.follow, attempt)
            parts = restarts.wait_for(leader.parts, second.signals)
            leader.close(Ending("failed", "node 1: its agent was started again"), 0)
            assert followed.result(30) == 1
        assert parts == [Part("node 1: its agent was started again")]

    @pytest.mark.parametrize(("size", "names"), [(3, "1, 2"), (128, "1, 2, 3, 4, 5, 6, 7, 8 and 119 more")])
    def test_a_node_that_does_not_come(
        self,
        run: RunFolder,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
        size: int,
        names: str,
    ) -> None:
        monkeypatch.setattr(NodeAgent, "run_groups", lambda agent, watch: pytest.fail("started without it"))
        monkeypatch.setattr(restarts, "NOTICE_SECONDS", -1.0)
        plan = plan_of(run, group(num_processes=size, num_nodes=size, timeout_seconds=0))
        printed = io.StringIO()
        Attempts(run, plan, Console(file=printed, width=200), StopSignals(), Nodes(run, 0, size), 0).lead(3)
        assert printed.getvalue() == f"waiting for node {names} of {size}: the same command, with --node-rank\n"
        assert f"error: node {names} of {size} did not come to {run.path} within 0 s: was it" in capsys.readouterr().err


new_attempt = RunFolder.new_attempt


def entered(nodes: Nodes, attempt: Attempt) -> Attempt:
    nodes.enter(attempt)
    return attempt
