"""What is known of a run, from its folder and from who has its lock."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from scaleup.errors import ScaleupError
from scaleup.launcher.peers import Nodes
from scaleup.runs.state import NEWS_SECONDS, Place, parents_of, read_plan, read_state
from tests.cli import wait_until
from tests.unit.runs.made import elsewhere, ended, heartbeat, held, made

LINES = [{"step": 1, "loss": 3.0}, {"step": 2, "loss": 2.0}, {"step": 2, "eval_loss": 2.5}]


def test_how_runs_end(tmp_path: Path) -> None:
    kinds = {"finished": "finished", "stopped": "stopped", "failed": "failed", "refused": "failed"}
    for kind, state in kinds.items():
        assert read_state(ended(made(tmp_path, kind, LINES), kind).path).state == state
    prepared = made(tmp_path, "prepared")
    assert read_state(prepared.path).state == "unfinished"
    Nodes(prepared, 0, 1).enter(prepared.new_attempt())
    assert read_state(prepared.path).state == "unfinished", "its agent was killed: nobody has the lock"
    prepared.resumable_file.write_text("{}")
    assert read_state(prepared.path).state == "stopped"


def test_steps_and_metrics(tmp_path: Path) -> None:
    state = read_state(ended(made(tmp_path, "x", LINES), "failed").path)
    assert (state.stage, state.step, state.num_steps) == ("sft", 2, 4)
    assert state.metrics == {"step": 2, "loss": 2.0, "eval_loss": 2.5}
    assert state.eta_seconds is None
    assert read_state(ended(made(tmp_path, "y", LINES), "finished").path).step == 4, "as the manifest says"


def test_a_run_that_goes_on_here(tmp_path: Path) -> None:
    run = made(tmp_path, "x", LINES)
    with held(run) as process:
        state = read_state(run.path)
        assert (state.state, state.phase) == ("running", "starting")
        assert state.place == Place(socket.gethostname(), process.pid)
    assert read_state(run.path).state == "unfinished"


SLEEPS = "import pathlib, sys; pathlib.Path(sys.argv[-1]).touch(); sys.stdin.read()"


def test_its_workers_say_how_far_they_are(tmp_path: Path) -> None:
    run, local = made(tmp_path, "x", LINES), tmp_path / "local"
    attempt = run.new_attempt()
    heartbeat(local / "heartbeats", "policy-rank10")
    heartbeat(local / "heartbeats", "policy-rank2", phase="forward and backward")
    (local / "heartbeats/policy-rank3.json").write_text("{")
    command = [sys.executable, "-c", SLEEPS, "scaleup.worker", str(run.path), "policy", "--attempt", "1"]
    command += ["--node", "0", "--local", str(local), str(tmp_path / "ready")]
    with held(run), subprocess.Popen(command, stdin=subprocess.PIPE) as worker:
        wait_until((tmp_path / "ready").exists, every=0.01)
        state = read_state(run.path)
        assert list(state.ranks) == ["policy-rank2", "policy-rank10"]
        assert state.phase == "forward and backward"
        assert (state.step, state.num_steps) == (2, 4)
        assert state.eta_seconds == pytest.approx(5.0 * 2), "5 s each of two steps, and two are left"
        run.new_attempt()
        assert read_state(run.path).ranks == {}, "those of an attempt that is over"
        worker.kill()
    assert attempt.number == 1


def test_a_run_that_goes_on_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = made(tmp_path)
    notice = elsewhere(run, monkeypatch)
    state = read_state(run.path)
    assert (state.state, state.place, state.step) == ("running", Place("far", None), 2)
    assert state.ranks["policy-rank0"].host == "far"
    old = time.time() - NEWS_SECONDS - 1
    os.utime(notice, (old, old))
    assert read_state(run.path).state == "unfinished", "its host is gone, or it was killed"
    os.utime(notice)
    monkeypatch.setattr(socket, "gethostname", lambda: "far")
    assert read_state(run.path).state == "unfinished", "it would have the lock"


def test_damaged_files_are_no_crash(tmp_path: Path) -> None:
    run = ended(made(tmp_path, "x", LINES), "finished")
    for file in (run.plan_file, run.manifest_file):
        file.write_text("{")
    state = read_state(run.path)
    assert (state.state, state.stage, state.step, state.num_steps) == ("finished", "sft", 2, None)


def test_parents(tmp_path: Path) -> None:
    first = ended(made(tmp_path, "first"), "finished")
    (tmp_path / "link").symlink_to(first.path)
    second = made(tmp_path, "second", parent=tmp_path / "link")
    assert parents_of(second, read_plan(second)) == [first.path]
    assert parents_of(first, read_plan(first)) == []


def test_what_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(ScaleupError, match="is no run folder"):
        read_state(tmp_path)
