"""Who hangs, from the heartbeats of workers: plain states, and a clock that the test moves."""

from __future__ import annotations

import json
import os
import signal
import socket
from typing import Any

import pytest

from scaleup.artifacts.run_folder import RunFolder
from scaleup.launcher import hung, peers
from scaleup.launcher.ending import ending_of
from scaleup.launcher.hung import HungWorkers
from scaleup.launcher.peers import Nodes
from scaleup.launcher.processes import RunProcess
from scaleup.launcher.ranks import WorkerState, frozen_sentence, is_in_its_steps, no_progress_sentence
from tests.unit.launcher.plans import group, local_of, plan_of
from tests.unit.launcher.test_agent import SAVES_WHEN_TOLD, agent, alive, pids, run_part, send

HOST = socket.gethostname()


def state(rank: int = 0, **fields: Any) -> WorkerState:
    known = {"host": f"n{rank}", "pid": 10 + rank, "beat": 1, "phase": "update", "step": 12, "steps": 12}
    return WorkerState(f"policy-rank{rank}", **{**known, "position": (5, 1), **fields})


class TestSentences:
    def test_frozen(self) -> None:
        sentence = "policy-rank1 on host n1 hangs: no sign of life for 120 s, last seen in phase update of step 12"
        assert frozen_sentence(state(1), 120) == sentence
        early = frozen_sentence(state(1, step=None, phase="loading the model"), 10.0)
        assert early == "policy-rank1 on host n1 hangs: no sign of life for 10 s, last seen in phase loading the model"

    def test_the_one_behind_is_named(self) -> None:
        states = [state(0, position=(6, 0)), state(1, position=(5, 9), phase="reading rows"), state(2, position=(6, 0))]
        sentence = no_progress_sentence(group(), states, 60)
        where = "in phase reading rows of step 12, and the others wait for it"
        assert sentence == f"policy-rank1 on host n1 hangs: no progress for 60 s, {where}"

    def test_what_was_begun_since_the_last_collective_counts(self) -> None:
        """As under ZeRO-3, whose ranks meet within the forward pass."""
        sentence = no_progress_sentence(group(), [state(0, position=(5, 2)), state(1, position=(5, 1))], 60)
        assert sentence.startswith("policy-rank1 on host n1 hangs: ")

    def test_several_behind(self) -> None:
        ahead = state(10, position=(9, 0))
        sentence = no_progress_sentence(group(), [ahead, state(2), state(1)], 60)
        assert sentence.startswith("policy-rank1 on host n1 and policy-rank2 on host n2 hang: no progress for 60 s, in")
        many = no_progress_sentence(group(), [ahead, *map(state, range(6))], 60)
        assert " and policy-rank3 on host n3 and others hang: " in many and "rank4" not in many

    def test_all_alike_and_alone(self) -> None:
        sentence = no_progress_sentence(group(), [state(0), state(1)], 60)
        assert sentence == "group policy hangs: no progress for 60 s on any of its ranks, in phase update of step 12"
        alone = no_progress_sentence(group(), [state(0)], 60)
        assert alone == "policy-rank0 on host n0 hangs: no progress for 60 s, in phase update of step 12"


def test_only_what_lies_between_the_first_and_the_last_step_is_watched_for_progress() -> None:
    assert is_in_its_steps([state(0, steps=2), state(1, steps=1)])
    assert not is_in_its_steps([state(0, steps=1), state(1, steps=1)]), "the first one may compile"
    assert not is_in_its_steps([state(0), state(1, step=None)]), "it writes the result"


class Scene:
    """A node of an attempt, with two ranks of a policy, whose heartbeats the test writes, and looks that need no
    waiting."""

    def __init__(self, run: RunFolder, node_rank: int = 0, num_nodes: int = 1, **settings: Any) -> None:
        plan = plan_of(run, group(num_processes=2 * num_nodes, num_nodes=num_nodes, **settings))
        self.local, self.nodes = local_of(run, node_rank), Nodes(run, node_rank, num_nodes)
        self.nodes.enter(run.newest_attempt() or run.new_attempt())
        self.pids = [10, 11]
        self.ranks = [2 * node_rank, 2 * node_rank + 1]
        alive = lambda: [self.process(pid) for pid in self.pids]  # noqa: E731
        self.watched = HungWorkers(plan, node_rank, self.local, self.nodes, alive)
        for rank in self.ranks:
            self.beat(rank)

    @staticmethod
    def process(pid: int) -> RunProcess:
        return RunProcess(pid, "policy", 1, 0, False)

    def beat(self, rank: int, **fields: Any) -> None:
        written = {**vars(state(rank)), **fields}
        for known in ("host", "still"):
            del written[known]
        (self.local.heartbeats / f"{written.pop('name')}.json").write_text(json.dumps(written))

    def look(self, times: int = 1) -> str:
        for _ in range(times):
            self.watched._next_look = 0.0
            if sentence := self.watched.look():
                return sentence
        return ""


@pytest.fixture
def no_signals(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """The numbers of processes here are made up."""
    sent: list[tuple[int, int]] = []
    monkeypatch.setattr(os, "kill", lambda pid, number: sent.append((pid, number)))
    monkeypatch.setattr(hung, "STACK_SECONDS", 0.0)
    return sent


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """That of the agents' notices."""
    now = [1000.0]
    monkeypatch.setattr(peers.time, "monotonic", lambda: now[0])
    return now


@pytest.mark.usefixtures("no_signals")
class TestLooks:
    def test_a_frozen_worker(self, run: RunFolder, no_signals: list[tuple[int, int]]) -> None:
        scene = Scene(run, heartbeat_timeout_seconds=10)
        assert scene.look(5) == ""
        scene.beat(0, beat=2)
        sentence = scene.look()
        assert (
            sentence
            == f"policy-rank1 on host {HOST} hangs: no sign of life for 10 s, last seen in phase update of step 12"
        )
        assert sorted(no_signals) == [(10, signal.SIGUSR2), (11, signal.SIGUSR2)]
        assert scene.look(9) == "", "it is named once"
        assert scene.watched.sentence

    def test_one_that_is_gone_is_its_launchers_to_tell(self, run: RunFolder) -> None:
        scene = Scene(run, heartbeat_timeout_seconds=10)
        scene.pids = []
        assert scene.look(20) == ""

    def test_a_full_disk_is_no_time_to_judge(self, run: RunFolder) -> None:
        scene = Scene(run, heartbeat_timeout_seconds=10)
        (scene.local.heartbeats / ".agent.json").mkdir()
        assert scene.look(50) == ""
        (scene.local.heartbeats / ".agent.json").rmdir()
        assert scene.look(5) == "", "as if no time had passed"
        assert "hangs" in scene.look()

    def test_a_new_worker_of_the_name_has_its_own_time(self, run: RunFolder) -> None:
        scene = Scene(run, heartbeat_timeout_seconds=10)
        assert scene.look(5) == ""
        scene.pids = [12, 13]
        for rank in (0, 1):
            scene.beat(rank, pid=12 + rank)
        assert scene.look(5) == ""

    def test_standing_still(self, run: RunFolder) -> None:
        """Its ranks beat; rank 0 has entered what rank 1 has not."""
        scene = Scene(run, progress_timeout_seconds=10)
        scene.beat(0, position=(6, 0))
        for beat in range(2, 7):
            assert scene.look() == ""
            scene.beat(1, beat=beat)
            scene.beat(0, beat=beat, position=(6, 0))
        sentence = scene.look()
        assert sentence.startswith(
            f"policy-rank1 on host {HOST} hangs: no progress for 10 s, in phase update of step 12,"
        )

    def test_standing_still_where_a_heartbeat_cannot_be_read_now_and_then(self, run: RunFolder) -> None:
        """The time already waited counts on."""
        scene = Scene(run, progress_timeout_seconds=10, heartbeat_timeout_seconds=10_000)
        assert scene.look(3) == ""
        (scene.local.heartbeats / "policy-rank1.json").write_text("{")
        assert scene.look() == ""
        scene.beat(1)
        assert "no progress for 10 s" in scene.look(2)

    def test_one_that_moves_is_enough(self, run: RunFolder) -> None:
        scene = Scene(run, progress_timeout_seconds=10)
        for number in range(20):
            scene.beat(0, position=(6, number))
            assert scene.look() == ""

    def test_before_the_first_step_and_after_the_last_one_nobody_asks(self, run: RunFolder) -> None:
        scene = Scene(run, progress_timeout_seconds=10, heartbeat_timeout_seconds=10_000)
        scene.beat(1, step=None)
        assert scene.look(50) == ""
        scene.beat(1)
        assert scene.look(5) == "", "from then on it counts"
        assert "no progress for 10 s" in scene.look()

    def test_the_first_node_alone_asks_for_progress(self, run: RunFolder) -> None:
        scene = Scene(run, node_rank=1, progress_timeout_seconds=10)
        assert scene.look(50) == ""

    def test_standing_still_on_two_nodes(self, run: RunFolder, clock: list[float]) -> None:
        """The one behind is on the other node, whose agent tells for how long its ranks have stood, once it is long."""
        first, second = (Scene(run, rank, num_nodes=2, progress_timeout_seconds=10) for rank in (0, 1))
        for number in range(9):
            for rank, position in ((0, (6, 0)), (1, (6, 0)), (2, (6, 0)), (3, (5, 0))):
                (first if rank < 2 else second).beat(rank, beat=number, position=position)
            clock[0] += peers.LOOK_SECONDS
            assert second.look() == ""
            assert not first.nodes.another_failed()
            if sentence := first.look():
                break
        where = "in phase update of step 12, and the others wait for it"
        assert sentence == f"policy-rank3 on host {HOST} hangs: no progress for 10 s, {where}"
        assert 5 <= number <= 6

    def test_one_that_moves_on_another_node_is_enough(self, run: RunFolder, clock: list[float]) -> None:
        first, second = (Scene(run, rank, num_nodes=2, progress_timeout_seconds=10) for rank in (0, 1))
        for number in range(40):
            second.beat(3, position=(6, number // 4))
            clock[0] += peers.LOOK_SECONDS
            second.look()
            assert not second.nodes.another_failed() and not first.nodes.another_failed()
            assert first.look() == ""

    @pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"pid": 1}', "null"])
    def test_a_heartbeat_that_cannot_be_read(self, run: RunFolder, text: str) -> None:
        scene = Scene(run, heartbeat_timeout_seconds=10)
        (scene.local.heartbeats / "policy-rank0.json").write_text(text)
        assert scene.watched._state("policy-rank0") is None
        scene.beat(1, beat=2)
        assert scene.look(5) == ""


# Beats once and no more; signals it ignores, as a frozen process does.
FROZEN = """
import json, os, pathlib, signal, sys, time
signal.signal(signal.SIGUSR1, signal.SIG_IGN)
signal.signal(signal.SIGUSR2, signal.SIG_IGN)
state = {"pid": os.getpid(), "beat": 1, "phase": "update", "step": 3, "steps": 3, "position": [1, 2]}
(pathlib.Path(sys.argv[-2]) / "heartbeats/policy-rank0.json").write_text(json.dumps(state))
time.sleep(60)
"""


class TestAgent:
    """A hang is a failure like a death, for one process that is there."""

    @pytest.fixture
    def quick(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(hung, "LOOK_SECONDS", 0.2)
        monkeypatch.setattr(hung, "STACK_SECONDS", 0.0)

    @pytest.mark.usefixtures("quick")
    def test_it_ends_the_run_and_is_the_cause(self, run: RunFolder) -> None:
        running = agent(run, FROZEN, group(heartbeat_timeout_seconds=2))
        part = run_part(running)
        sentence = f"policy-rank0 on host {HOST} hangs: no sign of life for 2 s, last seen in phase update of step 3"
        assert (part.failed, part.killed, part.signalled) == (sentence, sentence, False)
        ending = ending_of(run, running.attempt, [part])
        assert (ending.kind, ending.what, ending.final) == ("failed", sentence, False)
        assert alive(pids(running)) == []

    @pytest.mark.usefixtures("quick")
    def test_after_a_signal_too(self, run: RunFolder) -> None:
        """Nothing else would ever end it."""
        running = agent(run, FROZEN, group(heartbeat_timeout_seconds=2))
        send(signal.SIGTERM, when=lambda: bool(running._workers()))
        part = run_part(running)
        assert part.signalled and "hangs" in part.killed
        assert alive(pids(running)) == []

    @pytest.mark.usefixtures("quick")
    def test_one_that_saves_is_not_frozen(self, run: RunFolder) -> None:
        running = agent(run, SAVES_WHEN_TOLD, group(heartbeat_timeout_seconds=2))
        send(signal.SIGTERM, when=lambda: bool(running._workers()))
        assert run_part(running).killed == ""
