"""Who hangs, from what workers said: plain signs, and a clock that the test moves."""

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
from scaleup.launcher.hung import HungWorkers, Sign, Unmoved, frozen_sentence, is_in_its_steps, still_sentence
from scaleup.launcher.processes import RunProcess
from tests.unit.launcher.plans import group, plan_of
from tests.unit.launcher.test_node import SAVES_WHEN_TOLD, agent, alive, pids, run_part, send

HOST = socket.gethostname()


def sign(rank: int = 0, **said: Any) -> Sign:
    known = {"host": f"n{rank}", "node": 0, "pid": 10 + rank, "beat": 1, "phase": "update", "step": 12, "steps": 12}
    return Sign(f"policy-rank{rank}", **{**known, "position": (5, 1), **said})


class TestUnmoved:
    def test_counts_looks_and_not_time(self) -> None:
        looks = Unmoved(2.0)
        assert looks.seconds("a") == 0
        for beat, expected in ((1, 0), (1, 2), (1, 4), (2, 0), (2, 2)):
            looks.note({"a": beat})
            assert looks.seconds("a") == expected

    def test_one_that_cannot_be_read_has_said_nothing(self) -> None:
        looks = Unmoved(2.0)
        looks.note({"a": 1, "b": 1})
        looks.note({"b": 2})
        looks.note({"b": 3})
        assert (looks.seconds("a"), looks.seconds("b")) == (4, 0)


class TestSentences:
    def test_frozen(self) -> None:
        said = "policy-rank1 on host n1 hangs: no sign of life for 120 s, last seen in phase update of step 12"
        assert frozen_sentence(sign(1), 120) == said
        early = frozen_sentence(sign(1, step=None, phase="loading the model"), 10.0)
        assert early == "policy-rank1 on host n1 hangs: no sign of life for 10 s, last seen in phase loading the model"

    def test_the_one_behind_is_named(self) -> None:
        signs = [sign(0, position=(6, 0)), sign(1, position=(5, 9), phase="reading rows"), sign(2, position=(6, 0))]
        said = still_sentence(group(), signs, 60)
        where = "in phase reading rows of step 12, and the others wait for it"
        assert said == f"policy-rank1 on host n1 hangs: no progress for 60 s, {where}"

    def test_what_was_begun_since_the_last_collective_counts(self) -> None:
        """As under ZeRO-3, whose ranks meet within the forward pass."""
        said = still_sentence(group(), [sign(0, position=(5, 2)), sign(1, position=(5, 1))], 60)
        assert said.startswith("policy-rank1 on host n1 hangs: ")

    def test_several_behind(self) -> None:
        ahead = sign(10, position=(9, 0))
        said = still_sentence(group(), [ahead, sign(2), sign(1)], 60)
        assert said.startswith("policy-rank1 on host n1 and policy-rank2 on host n2 hang: no progress for 60 s, in")
        many = still_sentence(group(), [ahead, *map(sign, range(6))], 60)
        assert " and policy-rank3 on host n3 and others hang: " in many and "rank4" not in many

    def test_all_alike_and_alone(self) -> None:
        said = still_sentence(group(), [sign(0), sign(1)], 60)
        assert said == "group policy hangs: no progress for 60 s on any of its ranks, in phase update of step 12"
        alone = still_sentence(group(), [sign(0)], 60)
        assert alone == "policy-rank0 on host n0 hangs: no progress for 60 s, in phase update of step 12"


def test_only_what_lies_between_the_first_and_the_last_step_is_watched_for_progress() -> None:
    assert is_in_its_steps([sign(0, steps=2), sign(1, steps=1)])
    assert not is_in_its_steps([sign(0, steps=1), sign(1, steps=1)]), "the first one may compile"
    assert not is_in_its_steps([sign(0), sign(1, step=None)]), "it writes the result"


class Scene:
    """An attempt of a policy of two ranks, whose signs the test writes, and looks that need no waiting."""

    def __init__(self, run: RunFolder, node_rank: int = 0, **settings: Any) -> None:
        plan = plan_of(run, group(num_processes=2, **settings))
        self.attempt: Attempt = run.new_attempt()
        self.pids = [10, 11]
        self.watched = HungWorkers(self.attempt, plan, node_rank, lambda: [self.process(pid) for pid in self.pids])
        for rank in (0, 1):
            self.say(rank)

    @staticmethod
    def process(pid: int) -> RunProcess:
        return RunProcess(pid, "policy", 1, 0, False)

    def say(self, rank: int, **said: Any) -> None:
        told = {**vars(sign(rank, host=HOST)), **said}
        name = told.pop("name")
        self.attempt.sign_file(name).write_text(json.dumps(told))

    def look(self, times: int = 1) -> str:
        for _ in range(times):
            self.watched._next_look = 0.0
            self.watched._next_far_look.clear()
            if found := self.watched.look():
                return found
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
        scene.say(0, beat=2)
        found = scene.look()
        assert (
            found
            == f"policy-rank1 on host {HOST} hangs: no sign of life for 10 s, last seen in phase update of step 12"
        )
        assert sorted(no_signals) == [(10, signal.SIGUSR2), (11, signal.SIGUSR2)]
        assert scene.look(9) == "", "it is said once"
        assert scene.watched.found

    def test_one_that_is_gone_is_its_launchers_to_tell(self, run: RunFolder) -> None:
        scene = Scene(run, heartbeat_timeout_seconds=10)
        scene.pids = []
        assert scene.look(20) == ""

    def test_a_full_disk_is_no_time_to_judge(self, run: RunFolder) -> None:
        scene = Scene(run, heartbeat_timeout_seconds=10)
        (scene.attempt.signs / ".node0.tmp").mkdir()
        assert scene.look(50) == ""
        (scene.attempt.signs / ".node0.tmp").rmdir()
        assert scene.look(5) == "", "as if no time had passed"
        assert "hangs" in scene.look()

    def test_each_host_judges_its_own(self, run: RunFolder) -> None:
        scene = Scene(run, heartbeat_timeout_seconds=10)
        for rank in (0, 1):
            scene.say(rank, host="elsewhere")
        assert scene.look(20) == ""

    def test_a_new_worker_of_the_name_has_its_own_time(self, run: RunFolder) -> None:
        scene = Scene(run, heartbeat_timeout_seconds=10)
        assert scene.look(5) == ""
        scene.pids = [12, 13]
        for rank in (0, 1):
            scene.say(rank, pid=12 + rank)
        assert scene.look(5) == ""

    def test_standing_still(self, run: RunFolder) -> None:
        """Its ranks beat; rank 0 has entered what rank 1 has not."""
        scene = Scene(run, progress_timeout_seconds=10)
        scene.say(0, position=(6, 0))
        for beat in range(2, 7):
            assert scene.look() == ""
            scene.say(1, beat=beat)
            scene.say(0, beat=beat, position=(6, 0))
        found = scene.look()
        assert found.startswith(f"policy-rank1 on host {HOST} hangs: no progress for 10 s, in phase update of step 12,")

    def test_standing_still_where_a_sign_cannot_be_read_now_and_then(self, run: RunFolder) -> None:
        """Of many ranks on a network file system one never can: the time already waited counts on."""
        scene = Scene(run, progress_timeout_seconds=10, heartbeat_timeout_seconds=10_000)
        assert scene.look(3) == ""
        scene.attempt.sign_file("policy-rank1").write_text("{")
        assert scene.look() == ""
        scene.say(1)
        assert "no progress for 10 s" in scene.look(2)

    def test_one_that_moves_is_enough(self, run: RunFolder) -> None:
        scene = Scene(run, progress_timeout_seconds=10)
        for number in range(20):
            scene.say(0, position=(6, number))
            assert scene.look() == ""

    def test_before_the_first_step_and_after_the_last_one_nobody_asks(self, run: RunFolder) -> None:
        scene = Scene(run, progress_timeout_seconds=10, heartbeat_timeout_seconds=10_000)
        scene.say(1, step=None)
        assert scene.look(50) == ""
        scene.say(1)
        assert scene.look(5) == "", "from then on it counts"
        assert "no progress for 10 s" in scene.look()

    def test_the_first_node_alone_asks_for_progress(self, run: RunFolder) -> None:
        scene = Scene(run, node_rank=1, progress_timeout_seconds=10)
        assert scene.look(50) == ""

    @pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"pid": 1}', "null"])
    def test_a_sign_that_cannot_be_read(self, run: RunFolder, text: str) -> None:
        scene = Scene(run, heartbeat_timeout_seconds=10)
        scene.attempt.sign_file("policy-rank0").write_text(text)
        assert Sign.read(scene.attempt.sign_file("policy-rank0")) is None
        scene.say(1, beat=2)
        assert scene.look(5) == ""


# Registers, gives one sign of life and no more; what it is told it ignores, as a frozen process does.
FROZEN = """
import json, os, pathlib, signal, socket, sys, time
signal.signal(signal.SIGUSR1, signal.SIG_IGN)
signal.signal(signal.SIGUSR2, signal.SIG_IGN)
attempt = pathlib.Path(sys.argv[-1])
place = {"pid": os.getpid(), "host": socket.gethostname(), "node": 0}
said = {**place, "beat": 1, "phase": "update", "step": 3, "steps": 3, "position": [1, 2]}
(attempt / "signs/policy-rank0.json").write_text(json.dumps(said))
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
