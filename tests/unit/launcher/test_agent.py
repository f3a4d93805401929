"""The node agent over launchers that are tiny processes: what it starts, how it ends, and that nothing outlives it."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from scaleup.artifacts.checkpoints import checkpoint_folder, write_listing
from scaleup.artifacts.files import folder_aside
from scaleup.artifacts.run_folder import RunFolder
from scaleup.errors import Problem, ScaleupError
from scaleup.launcher import agent as node
from scaleup.launcher.agent import NodeAgent
from scaleup.launcher.ending import RESUMABLE, Part, ending_of, verdict
from scaleup.launcher.peers import Nodes
from scaleup.launcher.rendezvous import Rendezvous
from scaleup.launcher.signals import StopSignals
from scaleup.launcher.watch import Watch
from scaleup.plan.types import GroupPlan
from tests.cli import alive, wait_until
from tests.unit.launcher.plans import group, local_of, plan_of

# A worker of the kind the agent meets: it shows that it lives, and when told saves, says so and ends well.
SAVES_WHEN_TOLD = """
import json, os, pathlib, signal, sys, time
run, local = pathlib.Path(sys.argv[2]), pathlib.Path(sys.argv[-2])
def save(*_):
    (run / "resumable.json").write_text("{}")
    sys.exit(0)
signal.signal(signal.SIGUSR1, save)
state = {"pid": os.getpid(), "beat": 1, "phase": "update", "step": 3, "steps": 3, "position": [1, 2]}
(local / "heartbeats/.aside").write_text(json.dumps(state))
(local / "heartbeats/.aside").rename(local / "heartbeats/policy-rank0.json")
time.sleep(60)
"""
IGNORES_IT = SAVES_WHEN_TOLD.replace("signal.signal(signal.SIGUSR1, save)", "signal.signal(10, signal.SIG_IGN)")


class Agent(NodeAgent):
    """Starts a piece of Python for each group instead of `accelerate launch`."""

    code: str | dict[str, str] = "pass"

    def _start(self, group: GroupPlan, restart: int = 0) -> subprocess.Popen[bytes]:
        code = self.code if isinstance(self.code, str) else self.code[group.name]
        worker = ["scaleup.worker", str(self.run.path), group.name, "--attempt", self.attempt.path.name]
        worker += ["--node", str(self.node_rank)]
        worker += ["--local", str(self.local.path), str(self.attempt.path)]
        return subprocess.Popen([sys.executable, "-c", code, *worker], start_new_session=True)


def agent(run: RunFolder, code: str | dict[str, str] = "pass", *groups: GroupPlan) -> Agent:
    made = Agent(run, plan_of(run, *groups), run.new_attempt(), Nodes(run, 0, 1), StopSignals(), local_of(run))
    made.code = code
    return made


def run_part(agent: NodeAgent, watch: type[Watch] = Watch) -> Part:
    with agent.signals:
        return agent.run_groups(watch(agent.local, Console(file=io.StringIO()), {"policy": ""}))


def run_groups(agent: NodeAgent) -> int:
    """The exit code of a run that has this one part."""
    return verdict(agent.run, agent.attempt, ending_of(agent.run, agent.attempt, [run_part(agent)]))


def pids(agent: NodeAgent) -> list[int]:
    return [launcher.pid for launcher in agent._launchers.values()]


@pytest.fixture(autouse=True)
def handlers() -> Any:
    """Whatever happens, signals mean afterwards what they meant before."""
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    yield
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before


class TestVerdict:
    def test_finished(self, run: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
        assert run_groups(agent(run)) == 0
        assert capsys.readouterr() == ("", "")

    def test_failed_without_a_word(self, run: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
        failing = agent(run, "raise SystemExit(9)")
        assert run_groups(failing) == 1
        lines = capsys.readouterr().err.splitlines()
        assert lines == [
            "error: group policy ended with exit code 9",
            "  no checkpoint was saved",
            f"  logs: {failing.attempt.logs}",
        ]

    def test_killed(self, run: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
        assert run_groups(agent(run, "import os; os.kill(os.getpid(), 9)")) == 1
        assert "ended with exit code -9" in capsys.readouterr().err

    def test_failed_with_an_error_and_a_checkpoint(self, run: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
        with folder_aside(checkpoint_folder(run.checkpoints, 30)) as aside:
            (aside / "weights").touch()
            write_listing(aside, 30)
        failing = agent(run, "raise SystemExit(1)")
        record(failing, rank="policy-rank0", time=1.0, error="loss is nan at step 31", traceback="Traceback: here")
        record(failing, rank="policy-rank1", time=2.0, error="connection lost")
        assert run_groups(failing) == 1
        err = capsys.readouterr().err
        assert err.startswith("Traceback: here\nerror: policy-rank0 failed: loss is nan at step 31\n")
        assert "the newest checkpoint is step 30; continue with --resume" in err
        assert "connection lost" not in err

    def test_a_users_mistake(self, run: RunFolder) -> None:
        failing = agent(run, "raise SystemExit(2)")
        problems = [{"where": "data.train", "what": "is odd", "remedy": "mend it"}]
        record(failing, rank="policy-rank1", time=2.0, problems=problems)
        record(failing, rank="policy-rank0", time=1.0, error="connection lost")
        with pytest.raises(ScaleupError) as caught:
            run_groups(failing)
        assert caught.value.problems == [Problem("data.train", "is odd", "mend it")]

    def test_stopped_to_be_resumed(self, run: RunFolder) -> None:
        """Even where a launcher made something else of it."""
        stopping = agent(run, "import pathlib, sys; pathlib.Path(sys.argv[2], 'resumable.json').touch(); sys.exit(1)")
        assert run_groups(stopping) == RESUMABLE == 75

    def test_an_earlier_attempts_errors_are_past(self, run: RunFolder) -> None:
        record(agent(run), rank="policy-rank0", time=1.0, problems=[{"where": "a", "what": "b", "remedy": ""}])
        assert run_groups(agent(run)) == 0

    def test_one_group_of_two_fails(self, run: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
        groups = [group(name="policy"), group(name="reward")]
        assert run_groups(agent(run, {"policy": "pass", "reward": "raise SystemExit(3)"}, *groups)) == 1
        assert "group reward ended with exit code 3" in capsys.readouterr().err

    def test_a_group_that_fails_ends_the_others(self, run: RunFolder) -> None:
        """Even where the others then save: only one of them is a stop that somebody asked for."""
        groups = [group(name="policy"), group(name="reward")]
        failing = "import pathlib, sys, time\nfile = pathlib.Path(sys.argv[-2], 'heartbeats/policy-rank0.json')\n"
        failing += "while not file.exists(): time.sleep(0.01)\nsys.exit(3)"
        running = agent(run, {"policy": SAVES_WHEN_TOLD, "reward": failing}, *groups)
        part = run_part(running)
        assert part == Part("group reward ended with exit code 3")
        assert run.resumable_file.is_file()
        assert ending_of(run, running.attempt, [part]).kind == "failed"
        assert alive(pids(running)) == []


class TestSignals:
    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
    def test_workers_save_and_end(self, run: RunFolder, number: signal.Signals) -> None:
        running = agent(run, SAVES_WHEN_TOLD)
        send(number, when=lambda: bool(running._workers()))
        assert run_groups(running) == RESUMABLE
        assert alive(pids(running)) == []

    def test_before_the_workers_are_up(self, run: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
        running = agent(run, "import time; time.sleep(60)")
        send(signal.SIGTERM, when=lambda: bool(running._launchers))
        assert run_groups(running) == RESUMABLE
        assert capsys.readouterr().err == "", "a stop that was asked for is no error"

    def test_a_second_ctrl_c_ends_it_at_once(self, run: RunFolder) -> None:
        running = agent(run, IGNORES_IT)
        send(signal.SIGINT, signal.SIGINT, when=lambda: bool(running._workers()))
        started = time.monotonic()
        assert run_groups(running) == RESUMABLE
        assert time.monotonic() - started < node.GRACE_SECONDS / 2
        assert alive(pids(running)) == []


class TestNothingOutlivesTheAgent:
    def test_when_it_fails_itself(self, run: RunFolder) -> None:
        class Breaking(Watch):
            def refresh(self) -> None:
                raise RuntimeError("a bug")

        running = agent(run, "import time; time.sleep(60)")
        with pytest.raises(RuntimeError, match="a bug"):
            run_part(running, Breaking)
        assert alive(pids(running)) == []

    def test_when_a_launcher_does_not_listen(self, run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(node, "GRACE_SECONDS", 0.3)
        running = agent(run, IGNORES_IT)
        running._launchers["policy"] = running._start(running.plan.groups[0])
        wait_until(lambda: bool(running._workers()))
        running._end_all()
        running._launchers["policy"].wait(5)
        assert alive(pids(running)) == []

    def test_a_process_id_that_is_used_again_is_left_alone(self, run: RunFolder) -> None:
        with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as other:
            running = agent(run)
            (running.local.heartbeats / "policy-rank0.json").write_text(json.dumps({"pid": other.pid}))
            assert running._workers() == []
            running._kill_all()
            time.sleep(0.1)
            assert alive([other.pid]) == [other.pid]
            other.kill()


class TestWhatIsStarted:
    @pytest.fixture
    def accelerate(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        """A program that stands in for Python: it prints its arguments."""
        program = tmp_path / "python"
        program.write_text('#!/bin/sh\necho "$@"\necho wrong >&2\n')
        program.chmod(0o755)
        monkeypatch.setattr(node.sys, "executable", str(program))
        return program

    def test_one_launcher_a_group(self, run: RunFolder, accelerate: Path) -> None:
        plan = plan_of(run, group(name="policy"), group(name="reward"))
        made = NodeAgent(run, plan, run.new_attempt(), Nodes(run, 0, 1), StopSignals(), local_of(run))
        assert run_groups(made) == 0
        for name in ("policy", "reward"):
            file = f"--config_file {run.launch_file(name)}"
            worker = f"-m scaleup.worker {run.path} {name} --attempt 1 --node 0 --local {made.local.path}"
            log = (made.attempt.logs / f"{name}-node0.log").read_text()
            assert log == f"-m accelerate.commands.launch {file} {worker}\nwrong\n"

    def test_each_node_says_which_it_is(self, run: RunFolder, accelerate: Path) -> None:
        nodes = plan_of(run, group(num_processes=2, num_nodes=2))
        for rank in (0, 1):
            made = NodeAgent(
                run,
                nodes,
                run.new_attempt(),
                Nodes(run, 0, 1),
                StopSignals(),
                local_of(run, rank),
                rank,
                Rendezvous("127.0.0.1", 7),
            )
            assert run_groups(made) == 0
            log = (made.attempt.logs / f"policy-node{rank}.log").read_text()
            assert (
                f" --machine_rank {rank} --main_process_ip 127.0.0.1 --main_process_port 7 --rdzv_conf timeout=600 -m "
                in log
            )
            assert log.endswith(f" --node {rank} --local {made.local.path}\nwrong\n")


class TestANodeThatOnlyServes:
    """Node 1 of two: the group that leads is on node 0."""

    SERVES = group(name="reward", serves=True, first_node=1)

    def on_node_1(self, run: RunFolder, code: str) -> tuple[Agent, Nodes]:
        attempt, leader = run.new_attempt(), Nodes(run, 0, 2)
        leader.enter(attempt)
        plan = plan_of(run, group(), self.SERVES)
        made = Agent(run, plan, attempt, Nodes(run, 1, 2), StopSignals(), local_of(run, 1), 1)
        made.code = code
        made.plan.save(run.plan_file)
        (run.path / "launch").mkdir()
        made.nodes.enter(attempt)
        return made, leader

    def test_stays_until_the_others_have_ended(self, run: RunFolder) -> None:
        made, leader = self.on_node_1(run, "import time; time.sleep(60)")
        threading.Timer(1.5, lambda: leader.end(Part())).start()
        began = time.monotonic()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(node, "CLOSING_SECONDS", 0.1)
            assert run_part(made) == Part()
        assert time.monotonic() - began >= 1.5
        assert list(made._launchers) == ["reward"] and alive(pids(made)) == []

    def test_tells_the_others_of_a_signal_and_serves_on(self, run: RunFolder) -> None:
        made, leader = self.on_node_1(run, "import time; time.sleep(60)")
        seen: list[tuple[bool, bool]] = []

        def signal_then_end() -> None:
            os.kill(os.getpid(), signal.SIGTERM)
            deadline = time.monotonic() + 20
            while not leader.another_stops() and time.monotonic() < deadline:
                time.sleep(0.05)
            seen.append((leader.another_stops(), bool(alive(pids(made)))))
            leader.end(Part())

        threading.Timer(1.0, signal_then_end).start()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(node, "CLOSING_SECONDS", 0.1)
            assert run_part(made) == Part(signalled=True)
        assert seen == [(True, True)]

    def test_fails_when_it_cannot_serve(self, run: RunFolder) -> None:
        made, _ = self.on_node_1(run, "raise SystemExit(1)")
        assert run_part(made).failed == "group reward ended with exit code 1"


def test_a_signal_to_another_node_is_one_to_this(run: RunFolder) -> None:
    attempt, other = run.new_attempt(), Nodes(run, 1, 2)
    other.enter(attempt)
    plan = plan_of(run, group(num_processes=2, num_nodes=2))
    made = Agent(run, plan, attempt, Nodes(run, 0, 2), StopSignals(), local_of(run))
    made.code = SAVES_WHEN_TOLD
    made.nodes.enter(attempt)

    def when_registered() -> None:
        wait_until(lambda: bool(made.local.pids()), 30)
        other.tell_to_stop()

    threading.Thread(target=when_registered).start()
    assert run_part(made).signalled
    assert run.resumable_file.is_file()


def record(agent: NodeAgent, rank: str, time: float, **error: Any) -> None:
    agent.attempt.record_error(
        rank, {"rank": rank, "time": time, "problems": [], "error": "", "traceback": "", **error}
    )


def send(*numbers: signal.Signals, when: Callable[[], bool]) -> None:
    """Signals to this process, a little apart, once a condition holds."""

    def act() -> None:
        wait_until(when, timeout=20)
        for number in numbers:
            time.sleep(0.1)
            os.kill(os.getpid(), number)

    threading.Thread(target=act, daemon=True).start()
