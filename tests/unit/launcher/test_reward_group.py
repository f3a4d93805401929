"""A group that serves the one that leads: started again alone, of another size when asked, and gone when nobody needs
it. Launchers are tiny processes."""

from __future__ import annotations

import io
import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from scaleup.artifacts.run_folder import RunFolder
from scaleup.errors import ScaleupError
from scaleup.launcher import agent as node
from scaleup.launcher.ending import Part, ending_of
from scaleup.launcher.prepare import prepare_run
from scaleup.launcher.resize import resize_group
from scaleup.launcher.watch import Watch
from scaleup.plan.machine import Machine
from scaleup.plan.types import Plan
from tests.cli import alive, wait_until
from tests.unit.launcher.configs import config_of
from tests.unit.launcher.plans import group, plan_of
from tests.unit.launcher.test_agent import SAVES_WHEN_TOLD, Agent, agent

# Waits for a file in the run folder, which a test or the other group writes, and ends well.
UNTIL = """
import os, pathlib, signal, sys, time
run, local, name = pathlib.Path(sys.argv[2]), pathlib.Path(sys.argv[-2]), sys.argv[3]
with (run / f"{name}.started").open("a") as file:
    file.write(f"{os.getpid()}\\n")
while not (run / "FILE").exists():
    time.sleep(0.01)
"""
POLICY = UNTIL.replace("FILE", "go")
REWARD = UNTIL.replace("FILE", "closed")
CLOSES = POLICY + "(run / 'closed').touch()\n"
IS_FIRST = "len((run / 'reward.started').read_text().split()) == 1"
DIES_ONCE = REWARD.replace("while", f"if {IS_FIRST}: os.kill(os.getpid(), 9)\nwhile")

# Gives one sign of life and no more, the first time; and hears of nothing, as a frozen process does.
FREEZES_ONCE = REWARD.replace(
    "while",
    f"""if {IS_FIRST}:
    import json
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    state = {{"pid": os.getpid(), "beat": 1, "phase": "scoring", "step": None, "steps": 0, "position": [1, 2]}}
    (local / "heartbeats/reward-rank0.json").write_text(json.dumps(state))
    time.sleep(60)
while""",
)


@pytest.fixture
def serving(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Agent]:
    """An agent of a policy and a reward group that may die so often, with no time lost between."""
    monkeypatch.setattr("scaleup.launcher.reward_group.restart_delay", lambda restart: 0.0)
    monkeypatch.setattr("scaleup.launcher.reward_group.LOOK_SECONDS", 0.0)
    monkeypatch.setattr("scaleup.launcher.reward_group.PATIENT_SECONDS", 0.2)

    def make(policy: str, reward: str, max_restarts: int = 3, **rest: Any) -> Agent:
        groups = group(), group(name="reward", serves=True, max_restarts=max_restarts, **rest)
        plan_of(run, *groups).save(run.plan_file)
        (run.path / "launch").mkdir()
        return agent(run, {"policy": policy, "reward": reward}, *groups)

    return make


def run_part(running: Agent) -> tuple[Part, str]:
    """How it ended, and what the user saw."""
    seen = io.StringIO()
    with running.signals:
        part = running.run_groups(
            Watch(running.local, Console(file=seen, width=200), {"policy": "", "reward": "reward: "})
        )
    return part, seen.getvalue()


def started(run: RunFolder, name: str) -> list[int]:
    file = run.path / f"{name}.started"
    return [int(pid) for pid in file.read_text().split()] if file.exists() else []


def when(condition: Callable[[], bool], act: Callable[[], Any]) -> None:
    def wait() -> None:
        wait_until(condition, timeout=20)
        act()

    threading.Thread(target=wait, daemon=True).start()


def test_the_end_of_both(run: RunFolder, serving: Callable[..., Agent]) -> None:
    running = serving(CLOSES, REWARD)
    when(lambda: bool(started(run, "reward")), (run.path / "go").touch)
    assert run_part(running) == (Part(), "")
    assert len(started(run, "reward")) == 1
    assert ending_of(run, running.attempt, [Part()]).kind == "finished"


def test_one_that_died_is_started_again_alone(run: RunFolder, serving: Callable[..., Agent]) -> None:
    running = serving(CLOSES, DIES_ONCE)
    when(lambda: len(started(run, "reward")) == 2, (run.path / "go").touch)
    part, seen = run_part(running)
    assert part == Part()
    assert seen == "group reward ended with exit code -9; restart 1 of 3 of group reward alone\n"
    assert len(started(run, "policy")) == 1


def test_a_plan_that_is_damaged_has_not_changed(run: RunFolder, serving: Callable[..., Agent]) -> None:
    """What reads it goes on with what it read before; an agent that never has says which file it is."""
    harms = DIES_ONCE.replace("os.kill(", "(run / 'plan.json').write_text('{'); os.kill(")
    running = serving(CLOSES, harms)
    when(lambda: len(started(run, "reward")) == 2, (run.path / "go").touch)
    part, seen = run_part(running)
    assert part == Part()
    assert seen == "group reward ended with exit code -9; restart 1 of 3 of group reward alone\n"
    with pytest.raises(OSError, match=r"plan\.json: cannot be read: .* -> start the run again with --resume"):
        run_part(agent(run, {"policy": CLOSES, "reward": REWARD}, *running.plan.groups))


def test_one_that_freezes_is_named_and_started_again_alone(
    run: RunFolder, serving: Callable[..., Agent], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the policy misses its answers."""
    monkeypatch.setattr("scaleup.launcher.hung.LOOK_SECONDS", 0.2)
    monkeypatch.setattr(node, "END_SECONDS", 0.3)
    running = serving(CLOSES, FREEZES_ONCE, heartbeat_timeout_seconds=2)
    when(lambda: len(started(run, "reward")) == 2, (run.path / "go").touch)
    part, seen = run_part(running)
    assert part == Part()
    sentence = f"reward-rank0 on host {socket.gethostname()} hangs: no sign of life for 2 s, last seen in phase scoring"
    assert seen == f"{sentence}; restart 1 of 3 of group reward alone\n"
    assert len(started(run, "policy")) == 1
    assert alive(started(run, "reward")) == []


def test_one_that_dies_again_and_again_ends_the_run(run: RunFolder, serving: Callable[..., Agent]) -> None:
    running = serving(POLICY, "raise SystemExit(3)", max_restarts=2)
    part, seen = run_part(running)
    assert part == Part("group reward ended with exit code 3, after 2 restart(s)")
    assert seen.count("of group reward alone") == 2
    assert alive(started(run, "policy")) == []
    assert ending_of(run, running.attempt, [part]).kind == "failed"


def test_a_users_mistake_is_not_tried_again(run: RunFolder, serving: Callable[..., Agent]) -> None:
    wrong = {"rank": "reward-rank0", "time": 1.0, "error": "", "traceback": ""}
    problems = [{"where": "reward.model", "what": "is odd", "remedy": "mend it"}]
    running = serving(POLICY, "raise SystemExit(2)")
    running.attempt.record_error("reward-rank0", {**wrong, "problems": problems})
    part, seen = run_part(running)
    assert (part.failed, seen) == ("group reward ended with exit code 2", "")
    assert ending_of(run, running.attempt, [part]).kind == "refused"


def test_the_policys_death_ends_it(run: RunFolder, serving: Callable[..., Agent]) -> None:
    """And what it felt then is not the cause."""
    wrong = {"rank": "reward-rank0", "time": 1.0, "error": "the policy is gone", "traceback": ""}
    running = serving("raise SystemExit(9)", REWARD)
    running.attempt.record_error("reward-rank0", {**wrong, "problems": [{"where": "a", "what": "b", "remedy": ""}]})
    before = time.monotonic()
    part, _ = run_part(running)
    assert part == Part("group policy ended with exit code 9")
    assert alive(started(run, "reward")) == []
    assert time.monotonic() - before < node.GRACE_SECONDS / 2
    assert ending_of(run, running.attempt, [part]).what == "group policy ended with exit code 9"


def test_one_that_does_not_end_is_ended(
    run: RunFolder, serving: Callable[..., Agent], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(node, "CLOSING_SECONDS", 0.1)
    running = serving(POLICY, REWARD)
    when(lambda: bool(started(run, "reward")), (run.path / "go").touch)
    assert run_part(running)[0] == Part()
    assert alive(started(run, "reward")) == []


def test_a_stop_is_for_the_policy(
    run: RunFolder, serving: Callable[..., Agent], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which needs its rewards until it has saved."""
    monkeypatch.setattr(node, "CLOSING_SECONDS", 0.1)
    reward = SAVES_WHEN_TOLD.replace("policy-rank0", "reward-rank0").replace(
        'write_text("{}")', 'with_name("reward-told").touch()'
    )
    waits = "[time.sleep(0.01) for _ in iter((run / 'go').exists, True)]; sys.exit(0)"
    running = serving(SAVES_WHEN_TOLD.replace("sys.exit(0)", waits), reward)
    told = run.path / "reward-told"
    seen: list[bool] = []

    def stop() -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        wait_until(run.resumable_file.exists)
        seen.append(told.exists())
        (run.path / "go").touch()

    when(lambda: len(running._workers()) == 2, stop)
    part, _ = run_part(running)
    assert ending_of(run, running.attempt, [part]).kind == "stopped"
    assert seen == [False]


def test_another_size(run: RunFolder, serving: Callable[..., Agent]) -> None:
    """While the run goes on; no restart is used up by it."""
    running = serving(CLOSES, REWARD, max_restarts=0)

    def resize() -> None:
        resize_group(run.path, "reward", 3, Console(quiet=True))
        when(lambda: len(started(run, "reward")) == 2, (run.path / "go").touch)

    when(lambda: bool(started(run, "reward")), resize)
    part, seen = run_part(running)
    assert (part, seen) == (Part(), "group reward starts again with 3 process(es)\n")
    planned = Plan.read(run.plan_file).group("reward")
    assert (planned.num_processes, planned.strategy, planned.distributed_type) == (3, "ddp", "MULTI_CPU")
    assert "num_processes: 3" in run.launch_file("reward").read_text()


def test_one_that_hangs_is_started_again(
    run: RunFolder, serving: Callable[..., Agent], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The policy says that it gets no answers; the group does not even hear that it should end."""
    monkeypatch.setattr(node, "END_SECONDS", 0.1)
    hangs = REWARD.replace("while", f"if {IS_FIRST}: os.kill(os.getpid(), signal.SIGSTOP)\nwhile")
    running = serving(CLOSES, hangs)
    when(lambda: bool(started(run, "reward")), run.lost_file("reward").touch)
    when(lambda: len(started(run, "reward")) == 2, (run.path / "go").touch)
    part, seen = run_part(running)
    assert (part, seen) == (Part(), "group reward gave no answers; restart 1 of 3 of group reward alone\n")
    assert alive(started(run, "reward")) == []
    assert not run.lost_file("reward").exists()


class TestResizeRefuses:
    @pytest.mark.parametrize(("name", "line"), [("policy", "it has reward"), ("rewards", "it has reward")])
    def test_groups_that_do_not_serve(self, run: RunFolder, serving: Any, name: str, line: str) -> None:
        serving("", "")
        with pytest.raises(ScaleupError, match=f"has no group '{name}' that serves another -> {line}"):
            resize_group(run.path, name, 2, Console(quiet=True))

    def test_what_is_no_run(self, tmp_path: Path) -> None:
        with pytest.raises(ScaleupError, match="is no prepared run folder"):
            resize_group(tmp_path, "reward", 2, Console(quiet=True))

    def test_a_finished_run(self, run: RunFolder, serving: Any) -> None:
        serving("", "")
        run.manifest_file.touch()
        with pytest.raises(ScaleupError, match="has finished"):
            resize_group(run.path, "reward", 2, Console(quiet=True))


@pytest.mark.parametrize(
    ("name", "most", "num_gpus"),
    [("reward-a", 2, 8), ("reward-b", 5, 8), ("reward-b", 2, 5)],
)
def test_groups_grow_beside_one_another(
    run: RunFolder, name: str, most: int, num_gpus: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the GPUs up to the next group's, or the node's last one; a group on another node is in nobody's way."""
    here = {"serves": True, "device": "cuda", "backend": "nccl"}
    groups = [
        group(device="cuda", backend="nccl"),
        group(name="reward-a", first_device=1, **here),
        group(name="reward-b", first_device=3, **here),
        group(name="reward-c", first_device=2, first_node=1, **here),
    ]
    prepare_run(run, config_of({}), plan_of(run, *groups))
    machine = Machine(num_cores=8, num_gpus=num_gpus)
    monkeypatch.setattr("scaleup.launcher.resize.this_machine", lambda: machine)
    with pytest.raises(ScaleupError, match=f"need more than the {most} GPUs .* use at most {most}"):
        resize_group(run.path, name, most + 1, Console(quiet=True))
    resize_group(run.path, name, most, Console(quiet=True))
    assert Plan.read(run.plan_file).group(name).num_processes == most


def test_each_start_has_a_log(run: RunFolder) -> None:
    """So that the death of an earlier one is not taken for that of the last."""
    attempt = run.new_attempt()
    logs = {attempt.launcher_log("reward", 0, restart) for restart in range(3)}
    assert len(logs) == 3
