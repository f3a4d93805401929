"""Run the real command line in a process of its own, and read back what a run left."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

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
            process.communicate(timeout=30)
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
    file = cwd / f"{config['name']}.yaml"
    file.write_text(yaml.safe_dump(dict(config)), encoding="utf-8")
    result = scaleup("run", file, *arguments, cwd=cwd)
    folder = cwd / str(config.get("runs_dir", "runs")) / config["name"]
    assert result.code == code, f"exit code {result.code}\n{result.stdout}\n{result.stderr}\n{logs(folder)}"
    return folder


def logs(folder: Path) -> str:
    """Every rank's log under a folder."""
    return "\n".join(f"--- {file}\n{file.read_text(errors='replace')}" for file in sorted(folder.rglob("logs/*.log")))


def metrics(run_folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run_folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def losses(run_folder: Path) -> dict[int, float]:
    """Step -> training loss."""
    return {line["step"]: line["loss"] for line in metrics(run_folder) if "loss" in line}


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
