"""A worker's heartbeat, in a process of its own: what it writes, and that nothing but the process ends it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from scaleup.distributed.heartbeat import Heartbeat
from tests.cli import wait_until

# Begins its second step, enters two collectives, begins a phase; then waits in `here` for the end of its input.
WORKER = """
import sys
from scaleup.distributed import heartbeat
heartbeat.BEAT_SECONDS = 0.02
mine = heartbeat.Heartbeat(heartbeat.Path(sys.argv[1])).start()
for step in (7, 8):
    mine.begin_step(step, 9)
    mine.enter_phase("reading rows")
    mine.enter_collective()
mine.enter_phase("forward and backward")
def here():
    sys.stdin.read()
here()
"""


@pytest.fixture
def worker(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", WORKER, str(tmp_path / "heartbeats/policy-rank1.json")]
    (tmp_path / "heartbeats").mkdir()
    pipes = {"stdin": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, text=True, **pipes) as process:
        yield process
        process.kill()


def written(tmp_path: Path) -> dict[str, Any]:
    file = tmp_path / "heartbeats/policy-rank1.json"
    return json.loads(file.read_text()) if file.is_file() else {"beat": 0, "position": []}


def beats(tmp_path: Path) -> bool:
    before = written(tmp_path)["beat"]
    wait_until(lambda: written(tmp_path)["beat"] > before, timeout=30)
    return True


def test_what_it_writes(worker: subprocess.Popen[str], tmp_path: Path) -> None:
    wait_until(lambda: written(tmp_path)["position"] == [2, 1], timeout=30)
    state = written(tmp_path)
    assert state["pid"] == worker.pid
    assert (state["phase"], state["step"], state["steps"]) == ("forward and backward", 8, 2)
    assert state["num_steps"] == 9
    assert 0 < state["step_seconds"] < 60, "of the one that has ended"
    assert beats(tmp_path), "while the main thread waits"


def test_it_outlives_a_file_system_that_does_not_take_it(worker: subprocess.Popen[str], tmp_path: Path) -> None:
    wait_until(lambda: written(tmp_path)["beat"] > 0, timeout=30)
    (tmp_path / "heartbeats").rename(tmp_path / "gone")
    wait_until(lambda: not list((tmp_path / "gone").glob(".*.tmp")), timeout=30)
    (tmp_path / "gone").rename(tmp_path / "heartbeats")
    assert beats(tmp_path)


def test_stacks_on_request(worker: subprocess.Popen[str], tmp_path: Path) -> None:
    wait_until(lambda: written(tmp_path)["position"] == [2, 1], timeout=30)
    worker.send_signal(signal.SIGUSR2)
    assert worker.stderr is not None
    lines = [worker.stderr.readline()]
    while "in here" not in lines[-1]:
        lines.append(worker.stderr.readline())
        assert worker.poll() is None
    assert any("most recent call first" in line for line in lines)
    assert beats(tmp_path), "it goes on"


def test_whom_its_agent_cannot_know_does_not_begin(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file"):
        Heartbeat(tmp_path / "gone/policy-rank0.json").start()


def test_positions_grow_with_whatever_is_begun() -> None:
    heartbeat = Heartbeat()
    positions = []
    for phase in ("a", "a", None, "b", None, None):
        if phase:
            heartbeat.enter_phase(phase)
        else:
            heartbeat.enter_collective()
        positions.append((heartbeat.collectives, heartbeat.phases))
    assert positions == sorted(set(positions))
