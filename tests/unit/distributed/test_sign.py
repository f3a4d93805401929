"""A worker's sign of life, in a process of its own: what it says, and that nothing but the process ends it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from scaleup.distributed.sign import SignOfLife
from tests.cli import wait_until

# Begins its second step, meets twice, begins something; then waits in `here` for the end of its input.
WORKER = """
import sys
from scaleup.distributed import sign
sign.BEAT_SECONDS = 0.02
mine = sign.SignOfLife(sign.Path(sys.argv[1]), node_rank=3).start()
for step in (7, 8):
    mine.begin_step(step)
    mine.at("reading rows")
    mine.meet()
mine.at("forward and backward")
def here():
    sys.stdin.read()
here()
"""


@pytest.fixture
def worker(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", WORKER, str(tmp_path / "signs/policy-rank1.json")]
    (tmp_path / "signs").mkdir()
    pipes = {"stdin": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, text=True, **pipes) as process:
        yield process
        process.kill()


def said(tmp_path: Path) -> dict[str, Any]:
    file = tmp_path / "signs/policy-rank1.json"
    return json.loads(file.read_text()) if file.is_file() else {"beat": 0, "position": []}


def beats(tmp_path: Path) -> bool:
    before = said(tmp_path)["beat"]
    wait_until(lambda: said(tmp_path)["beat"] > before, timeout=30)
    return True


def test_what_it_says(worker: subprocess.Popen[str], tmp_path: Path) -> None:
    wait_until(lambda: said(tmp_path)["position"] == [2, 1], timeout=30)
    found = said(tmp_path)
    assert (found["pid"], found["node"]) == (worker.pid, 3)
    assert (found["phase"], found["step"], found["steps"]) == ("forward and backward", 8, 2)
    assert beats(tmp_path), "while the main thread waits"


def test_it_outlives_a_file_system_that_does_not_take_it(worker: subprocess.Popen[str], tmp_path: Path) -> None:
    wait_until(lambda: said(tmp_path)["beat"] > 0, timeout=30)
    (tmp_path / "signs").rename(tmp_path / "gone")
    wait_until(lambda: not (tmp_path / "gone/.policy-rank1.json.tmp").exists(), timeout=30)
    (tmp_path / "gone").rename(tmp_path / "signs")
    assert beats(tmp_path)


def test_stacks_on_request(worker: subprocess.Popen[str], tmp_path: Path) -> None:
    wait_until(lambda: said(tmp_path)["position"] == [2, 1], timeout=30)
    worker.send_signal(signal.SIGUSR2)
    assert worker.stderr is not None
    lines = [worker.stderr.readline()]
    while "in here" not in lines[-1]:
        lines.append(worker.stderr.readline())
        assert worker.poll() is None
    assert any("most recent call first" in line for line in lines)
    assert beats(tmp_path), "it goes on"


def test_positions_grow_with_whatever_is_begun() -> None:
    sign = SignOfLife()
    seen = []
    for begin in (lambda: sign.at("a"), lambda: sign.at("a"), sign.meet, lambda: sign.at("b"), sign.meet, sign.meet):
        begin()
        seen.append((sign.meetings, sign.marks))
    assert seen == sorted(set(seen))
