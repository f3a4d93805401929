"""Which processes are a run's, and what becomes of those that an earlier start left behind."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console

from scaleup.artifacts.run_folder import RunFolder
from scaleup.errors import ScaleupError
from scaleup.launcher import processes
from scaleup.launcher.processes import RunProcess, end_leftovers, processes_of
from tests.cli import alive, wait_until

SLEEPS = "import pathlib, sys, time; pathlib.Path(sys.argv[-1]).touch(); time.sleep(60)"
IGNORES = "import signal; signal.signal(10, signal.SIG_IGN); " + SLEEPS
Worker = subprocess.Popen[bytes]


class Workers:
    """Stand-ins with a worker's command line, ended with the test."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.started: list[Worker] = []

    def start(self, run: Path | str, *arguments: str, code: str = SLEEPS) -> Worker:
        ready = self.place / f"ready{len(self.started)}"
        command = [sys.executable, "-c", code, "scaleup.worker", str(run), "policy", *arguments, str(ready)]
        self.started.append(subprocess.Popen(command, cwd=self.place))
        wait_until(ready.exists, every=0.01)
        return self.started[-1]


@pytest.fixture
def workers(tmp_path: Path) -> Iterator[Workers]:
    made = Workers(tmp_path)
    yield made
    for worker in made.started:
        worker.kill()
        worker.wait()


def test_are_known_by_run_attempt_and_node(run: RunFolder, workers: Workers) -> None:
    found = workers.start(run.path, "--attempt", "3", "--node", "1")
    workers.start(f"{run.path}-other", "--attempt", "3", "--node", "1")
    workers.start(run.path)  # by hand
    assert processes_of(run.path) == [RunProcess(found.pid, "policy", 3, 1, is_launcher=False)]
    (link := run.path.parent / "link").symlink_to(run.path)
    assert [process.pid for process in processes_of(link)] == [found.pid]


class TestLeftovers:
    def test_none(self, run: RunFolder) -> None:
        printed = io.StringIO()
        end_leftovers(run.path, None, Console(file=printed))
        assert printed.getvalue() == ""

    def test_end_at_a_signal(self, run: RunFolder, workers: Workers) -> None:
        left = workers.start(run.path, "--attempt", "1", "--node", "0")
        printed = io.StringIO()
        end_leftovers(run.path, None, Console(file=printed, width=200))
        assert left.wait() == -signal.SIGUSR1
        expected = f"waiting for processes that an earlier start of this run left behind: {left.pid}\n"
        assert printed.getvalue() == expected

    def test_are_killed_when_they_do_not(
        self, run: RunFolder, workers: Workers, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(processes, "LEFTOVER_SECONDS", 0.3)
        left = workers.start(run.path, "--attempt", "1", "--node", "0", code=IGNORES)
        end_leftovers(run.path, None, Console(quiet=True))
        assert left.wait() == -9

    def test_of_this_attempt_are_none(self, run: RunFolder, workers: Workers) -> None:
        """Another node on this host has begun it."""
        old = workers.start(run.path, "--attempt", "1", "--node", "0")
        new = workers.start(run.path, "--attempt", "2", "--node", "0")
        end_leftovers(run.path, 2, Console(quiet=True))
        assert alive([old.pid, new.pid]) == [new.pid]

    def test_others_are_left_alone(self, run: RunFolder, workers: Workers) -> None:
        other = workers.start(f"{run.path}-other", "--attempt", "1", "--node", "0")
        by_hand = workers.start(run.path)
        end_leftovers(run.path, None, Console(quiet=True))
        time.sleep(0.1)
        assert alive([other.pid, by_hand.pid]) == [other.pid, by_hand.pid]

    def test_one_that_does_not_end_refuses_the_start(self, run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
        stuck = [RunProcess(os.getpid(), "policy", 1, 0, is_launcher=False)]
        monkeypatch.setattr(processes, "processes_of", lambda run: stuck)
        monkeypatch.setattr(processes, "signal_all", lambda *arguments: None)
        for name in ("LEFTOVER_SECONDS", "KILL_SECONDS"):
            monkeypatch.setattr(processes, name, 0.05)
        with pytest.raises(ScaleupError, match=f"process {os.getpid()} of an earlier start does not end"):
            end_leftovers(run.path, None, Console(quiet=True))
