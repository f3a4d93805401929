"""What `scaleup logs` prints, and when it ends."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from scaleup.artifacts.run_folder import RunFolder
from scaleup.errors import ScaleupError
from scaleup.runs import logs as module
from scaleup.runs.logs import INTERRUPTED, Logs, print_logs
from tests.cli import wait_until
from tests.unit.runs.made import held, made


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    """A run with two logs; the last line of one is being written."""
    run = made(tmp_path)
    logs = run.new_attempt().logs
    (logs / "policy-rank0.log").write_bytes(b"one\n\xff two\nhal")
    (logs / "reward-rank0.log").write_bytes(b"three\n")
    return run


def test_each_line_with_its_log(run: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    assert print_logs(run.path, None, follow=False) == 0
    expected = ["policy-rank0: one", "policy-rank0: \ufffd two", "reward-rank0: three", "policy-rank0: hal"]
    assert capsys.readouterr().out.splitlines() == expected


def test_one_log_alone(run: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    print_logs(run.path, "reward-rank0", follow=True)
    assert capsys.readouterr().out == "three\n", "a run that does not go on is printed, and that is all"


def test_what_is_new(run: RunFolder) -> None:
    lines: list[str] = []
    logs = Logs(run, "policy-rank0", lines.append)
    file = run.attempt(1).logs / "policy-rank0.log"
    logs.print_new()
    assert lines[1:] == ["\ufffd two"]
    with file.open("ab") as opened:
        opened.write(b"f\nrest")
    logs.print_new()
    assert lines[2:] == ["half"]
    (run.new_attempt().logs / "policy-rank0.log").write_bytes(b"again\n")
    logs.print_new()
    assert lines[3:] == ["rest", "--- attempt 2", "again"]
    logs.print_rest()
    assert lines[6:] == []


def test_follows_to_the_end(run: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    file, lines, codes = run.attempt(1).logs / "policy-rank0.log", [], []

    def printed(*expected: str) -> bool:
        lines.extend(capsys.readouterr().out.splitlines())
        return lines[-len(expected) :] == list(expected)

    with held(run) as process:
        thread = threading.Thread(target=lambda: codes.append(print_logs(run.path, "policy-rank0", follow=True)))
        thread.start()
        wait_until(lambda: printed("one", "\ufffd two"))
        with file.open("ab") as opened:
            opened.write(b"f\nlast")
        wait_until(lambda: printed("\ufffd two", "half"))
        assert thread.is_alive()
        process.communicate()
    thread.join(30)
    assert printed("half", "last")
    assert codes == [0]


def test_interrupted(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(seconds: float) -> None:
        raise KeyboardInterrupt

    with held(run):
        monkeypatch.setattr(module.time, "sleep", interrupt)
        assert print_logs(run.path, None, follow=True) == INTERRUPTED


def test_a_reader_that_is_gone(run: RunFolder, tmp_path: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    with held(run), os.fdopen(write, "wb") as pipe:
        command = [sys.executable, "-m", "scaleup.cli", "logs", str(run.path), "--follow"]
        assert subprocess.run(command, stdout=pipe, timeout=60, check=False).returncode == 0


def test_refusals(run: RunFolder, tmp_path: Path) -> None:
    with pytest.raises(ScaleupError, match="it has policy-rank0, reward-rank0"):
        print_logs(run.path, "policy-rank7", follow=False)
    with held(run), pytest.raises(ScaleupError, match="has no log 'policy-rank7'"):
        print_logs(run.path, "policy-rank7", follow=True)
    with pytest.raises(ScaleupError, match="has no logs yet"):
        print_logs(made(tmp_path, "prepared").path, None, follow=True)


def test_a_log_that_a_rank_of_the_plan_may_write_yet(tmp_path: Path) -> None:
    run = made(tmp_path, "other")
    with held(run):
        run.new_attempt()
        assert print_logs(run.path, "policy-rank0", follow=False) == 0
