"""Run the real command line in a process of its own, and read back what a run left."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from scaleup.artifacts.differences import largest_loss_difference as largest_loss_difference
from scaleup.artifacts.differences import largest_weight_difference as largest_weight_difference
from scaleup.artifacts.differences import losses as losses

TIMEOUT = 240.0


@dataclass(frozen=True)
class Result:
    code: int
    stdout: str
    stderr: str


def scaleup(
    *arguments: str | Path, cwd: Path, timeout: float = TIMEOUT, env: Mapping[str, str] | None = None
) -> Result:
    """`scaleup ARGUMENTS` in a folder. A run that does not end in time fails with every rank's log."""
    with start(*arguments, cwd=cwd, env=env) as process:
        try:
            stdout, stderr = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGTERM)
            try:
                process.communicate(timeout=30)
            except subprocess.TimeoutExpired:
                process.kill()
            raise AssertionError(f"{arguments} took longer than {timeout} s\n{logs(cwd)}") from None
    return Result(process.returncode, stdout, stderr)


def start(*arguments: str | Path, cwd: Path, env: Mapping[str, str] | None = None) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "scaleup.cli", *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, **(env or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(config: Mapping[str, Any], *arguments: str, cwd: Path, code: int = 0) -> Path:
    """Write a config, run it, expect an exit code, and give the run folder."""
    result = scaleup("run", write_config(config, cwd), *arguments, cwd=cwd)
    folder = folder_of(config, cwd)
    assert result.code == code, f"exit code {result.code}\n{result.stdout}\n{result.stderr}\n{logs(folder)}"
    return folder


def lines_of(file: Path) -> list[dict[str, Any]]:
    """The rows of a file of JSON lines."""
    return [json.loads(line) for line in file.read_text().splitlines()]


def write_config(config: Mapping[str, Any], cwd: Path) -> Path:
    file = cwd / f"{config['name']}.yaml"
    file.write_text(yaml.safe_dump(dict(config)), encoding="utf-8")
    return file


def folder_of(config: Mapping[str, Any], cwd: Path) -> Path:
    return cwd / str(config.get("runs_dir", "runs")) / config["name"]


def interrupt(
    config: Mapping[str, Any],
    *arguments: str,
    cwd: Path,
    when: Callable[[Path], bool],
    do: Callable[[subprocess.Popen[str], Path], object],
    timeout: float = TIMEOUT,
) -> Result:
    """Run a config, and once `when(run folder)` holds, do something to the run. Waits for its end."""
    folder = folder_of(config, cwd)
    with start("run", write_config(config, cwd), *arguments, cwd=cwd) as process:
        try:
            wait_until(lambda: process.poll() is not None or when(folder), timeout, every=0.002)
            assert process.poll() is None, "ended before it was interrupted"
            do(process, folder)
            stdout, stderr = process.communicate(timeout=timeout)
        except (AssertionError, subprocess.TimeoutExpired) as error:
            process.kill()
            stdout, stderr = process.communicate(timeout=30)
            raise AssertionError(f"{error}\n{stdout}\n{stderr}\n{logs(folder)}") from None
    return Result(process.returncode, stdout, stderr)


def reached(step: int) -> Callable[[Path], bool]:
    """Whether a run has logged that step."""

    def condition(folder: Path) -> bool:
        file = folder / "metrics.jsonl"
        lines = file.read_text(encoding="utf-8").splitlines(keepends=True) if file.is_file() else []
        return any(line.endswith("\n") and json.loads(line)["step"] >= step for line in lines[-2:])

    return condition


def worker_ids(folder: Path, attempt: str = "*") -> list[int]:
    """Process ids that workers of a run registered, in the order of their ranks."""
    return [json.loads(file.read_text())["pid"] for file in sorted(folder.glob(f"attempts/{attempt}/workers/*.json"))]


def rank_states(folder: Path, attempt: int = 1) -> dict[str, dict[str, Any]]:
    """What the nodes' agents last told of each rank: they do so every twenty seconds, or when there is news."""
    notices = [json.loads(file.read_text()) for file in folder.glob(f"attempts/{attempt}/nodes/[0-9]*.json")]
    return {name: state for notice in notices for name, state in notice["ranks"].items()}


def children(pid: int) -> list[int]:
    """None of a process that is gone."""
    with suppress(OSError):
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


def command_line(pid: int) -> list[str]:
    """Empty for a process that is gone: one that was listed may be, before anybody can read what it is."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
    return []


def alive(pids: Iterable[int]) -> list[int]:
    """Those that run: not gone, and not dead but unread by whoever inherited them."""
    states = {pid: _process_state(pid) for pid in pids}
    return [pid for pid, state in states.items() if state not in ("", "Z", "X")]


def _process_state(pid: int) -> str:
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    return ""


def logs(folder: Path) -> str:
    """Every rank's log under a folder."""
    return "\n".join(f"--- {file}\n{file.read_text(errors='replace')}" for file in sorted(folder.rglob("logs/*.log")))


def metrics(run_folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run_folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def tensorboard(run_folder: Path, tag: str) -> dict[int, float]:
    """Step -> value, as TensorBoard itself reads it."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    accumulator = EventAccumulator(str(run_folder / "tensorboard" / run_folder.name))
    accumulator.Reload()
    return {event.step: event.value for event in accumulator.Scalars(tag)}


def wait_until(condition: Callable[[], bool], timeout: float = 120.0, every: float = 0.05) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(every)


def differing(config: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of a config with dotted keys changed."""
    copy: dict[str, Any] = json.loads(json.dumps(dict(config)))
    for dotted, value in changes.items():
        *parents, last = dotted.split(".")
        place = copy
        for parent in parents:
            place = place.setdefault(parent, {})
        place[last] = value
    return copy
