"""One run, seen by whoever has only its folder: listed, followed, stopped, continued, and not removed while another was
made from it."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.cli import folder_of, reached, scaleup, start, wait_until, write_config
from tests.small_runs import write_rows
from tests.unit.runs.made import made

pytestmark = pytest.mark.slow
# From its fourth call on it waits while the test says so: the run stands in its fourth rollout.
FUNCTION = """
import time
from pathlib import Path
calls = []
def length(completions):
    calls.append(len(completions))
    while len(calls) > 3 and Path("hold").exists():
        time.sleep(0.02)
    return [float(len(text)) for text in completions]
"""
RUN: dict[str, Any] = {
    "stage": "rl",
    "name": "seen",
    "model": {"path": "builtin:tiny-llama"},
    "data": {"train": "rows.jsonl", "prompt": "{prompt}", "max_length": 32},
    "algorithm": {"type": "rloo", "num_generations": 2},
    "rollouts": {"num_rollouts": 6, "batch_size": 4, "max_new_tokens": 6},
    "rewards": [{"name": "length", "placement": "function", "function": "mine.py:length"}],
    "train": {"learning_rate": 1e-4},
}


def told(*arguments: str, cwd: Path) -> Any:
    result = scaleup(*arguments, "--json", cwd=cwd)
    assert (result.code, result.stderr) == (0, "")
    return json.loads(result.stdout)


def test_a_run_from_its_start_to_its_removal(tmp_path: Path) -> None:
    write_rows(tmp_path)
    (tmp_path / "mine.py").write_text(FUNCTION)
    (tmp_path / "hold").touch()
    folder = folder_of(RUN, tmp_path)
    with start("run", write_config(RUN, tmp_path), cwd=tmp_path) as run:
        try:
            wait_until(lambda: run.poll() is not None or reached(3)(folder))
            check_running(tmp_path, run.pid)
            with start("logs", "runs/seen", "--follow", cwd=tmp_path) as follows:
                said = stop(tmp_path)
                printed, _ = follows.communicate(timeout=60)
            run.communicate(timeout=60)
        finally:
            run.kill()
    assert (run.returncode, follows.returncode) == (75, 0)
    assert "policy-rank0: stopped" in printed
    check_resumable(tmp_path, said)
    check_finished(tmp_path)


def check_running(folder: Path, pid: int) -> None:
    (line,) = told("runs", cwd=folder)
    assert (line["name"], line["state"], line["stage"]) == ("seen", "running", "rl")
    assert (line["step"], line["num_steps"]) == (3, 6)
    status: dict[str, Any] = {}

    def has_beaten() -> bool:
        status.update(told("status", "runs/seen", cwd=folder))
        return status["ranks"]["policy-rank0"]["step"] == 4

    wait_until(has_beaten)
    assert status["process"] == pid
    assert status["ranks"]["policy-rank0"]["host"] == os.uname().nodename
    assert status["eta_seconds"] > 0
    refused = scaleup("remove", "runs/seen", "--yes", cwd=folder)
    assert (refused.code, "runs now, on host" in refused.stderr) == (2, True)


def stop(folder: Path) -> str:
    """Returns what is said to who stops the run, which goes on for as long as it takes to save."""
    with start("stop", "runs/seen", cwd=folder) as stops:
        assert stops.stdout is not None
        try:
            first = stops.stdout.readline()
            with pytest.raises(subprocess.TimeoutExpired):
                stops.wait(0.2)
            (folder / "hold").unlink()
            rest, _ = stops.communicate(timeout=60)
        finally:
            stops.kill()
    assert stops.returncode == 0
    assert first.startswith("runs/seen saves and stops: waiting for process ")
    return rest


def check_resumable(folder: Path, said: str) -> None:
    status = told("status", "runs/seen", cwd=folder)
    assert (status["state"], status["process"], status["ranks"]) == ("stopped", None, {})
    assert status["checkpoints"][0]["step"] == status["step"] == 3
    assert said == f"runs/seen was stopped after step 3 and can go on: {status['command']}\n"
    again = scaleup("stop", "runs/seen", cwd=folder)
    assert (again.code, again.stderr.count("does not run now")) == (2, 1)


def check_finished(folder: Path) -> None:
    """The command that status names goes on to the end; then the run goes once nothing needs it."""
    program, *command = shlex.split(told("status", "runs/seen", cwd=folder)["command"])
    assert program == "scaleup"
    done = scaleup(*command, cwd=folder)
    assert done.code == 0, done.stderr
    (line,) = told("runs", "--state", "finished", cwd=folder)
    assert (line["step"], line["metric"]) == (6, "scores")
    made(folder / "runs", "child", parent=folder / "runs/seen")
    refused = scaleup("remove", "runs/seen", "--yes", cwd=folder)
    assert (refused.code, "made from: child" in refused.stderr) == (2, True)
    assert scaleup("remove", "runs/child", "--yes", cwd=folder).code == 0
    assert scaleup("remove", "runs/seen", "--yes", cwd=folder).code == 0
    assert told("runs", cwd=folder) == []
