"""Who hangs, from the heartbeats of workers: plain states, and a clock that the test moves."""

from __future__ import annotations

import json
import os
import signal
import socket
from typing import Any

import pytest

from scaleup.artifacts.run_folder import Attempt, RunFolder
from scaleup.launcher import hung
from scaleup.launcher.ending import ending_of
from scaleup.launcher.hung import HungWorkers, WorkerState, frozen_sentence, is_in_its_steps, no_progress_sentence
from scaleup.launcher.processes import RunProcess
from tests.unit.launcher.plans import group, plan_of
from tests.unit.launcher.test_agent import SAVES_WHEN_TOLD, agent, alive, pids, run_part, send

HOST = socket.gethostname()


def state(rank: int = 0, **fields: Any) -> WorkerState:
    known = {"host": f"n{rank}", "node": 0, "pid": 10 + rank, "beat": 1, "phase": "update", "step": 12, "steps": 12}
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
    """An attempt of a policy of two ranks, whose heartbeats the test writes, and looks that need no waiting."""

    def __init__(self, run: RunFolder, node_rank: int = 0, **settings: Any) -> None:
        plan = plan_of(run, group(num_processes=2, **settings))
        self.attempt: Attempt = run.new_attempt()
        self.pids = [10, 11]
        self.watched = HungWorkers(self.attempt, plan, node_rank, lambda: [self.process(pid) for pid in self.pids])
        for rank in (0, 1):
            self.beat(rank)

    @staticmethod
    def process(pid: int) -> RunProcess:
        return RunProcess(pid, "policy", 1, 0, False)

    def beat(self, rank: int, **fields: Any) -> None:
        written = {**vars(state(rank, host=HOST)), **fields}
        name = written.pop("name")
        self.attempt.heartbeat_file(name).write_text(json.dumps(written))

    def look(self, times: int = 1) -> str:
        for _ in range(times):
            self.watched._next_look = 0.0
            self.watched._next_far_look.clear()
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
        (scene.attempt.heartbeats / ".node0.json").mkdir()
        assert scene.look(50) == ""
        (scene.attempt.heartbeats / ".node0.json").rmdir()
        assert scene.look(5) == "", "as if no time had passed"
        assert "hangs" in scene.look()

    def test_each_host_judges_its_own(self, run: RunFolder) -> None:
        scene = Scene(run, heartbeat_timeout_seconds=10)
        for rank in (0, 1):
            scene.beat(rank, host="elsewhere")
        assert scene.look(20) == ""

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
        """Of many ranks on a network file system one never can: the time already waited counts on."""
        scene = Scene(run, progress_timeout_seconds=10, heartbeat_timeout_seconds=10_000)
        assert scene.look(3) == ""
        scene.attempt.heartbeat_file("policy-rank1").write_text("{")
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

    @pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"pid": 1}', "null"])
    def test_a_heartbeat_that_cannot_be_read(self, run: RunFolder, text: str) -> None:
        scene = Scene(run, heartbeat_timeout_seconds=10)
        scene.attempt.heartbeat_file("policy-rank0").write_text(text)
        assert scene.watched._state("policy", 0) is None
        scene.beat(1, beat=2)
        assert scene.look(5) == ""


# Registers, beats once and no more; signals it ignores, as a frozen process does.
FROZEN = """
import json, os, pathlib, signal, socket, sys, time
signal.signal(signal.SIGUSR1, signal.SIG_IGN)
signal.signal(signal.SIGUSR2, signal.SIG_IGN)
attempt = pathlib.Path(sys.argv[-1])
place = {"pid": os.getpid(), "host": socket.gethostname(), "node": 0}
state = {**place, "beat": 1, "phase": "update", "step": 3, "steps": 3, "position": [1, 2]}
(attempt / "heartbeats/policy-rank0.json").write_text(json.dumps(state))
(attempt / "workers/policy-rank0.json").write_text(json.dumps(place))
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
