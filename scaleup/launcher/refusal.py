"""What the first node refuses, told to the nodes that wait for it: they end with the same mistakes, and at once.

A file beside the run folder, which may not be there yet (`runs/.NAME.refused.json`)."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from scaleup.artifacts.files import read_json, write_json
from scaleup.artifacts.run_folder import RunFolder
from scaleup.config.schema import RunConfig
from scaleup.errors import Problem, ScaleupError
from scaleup.plan.cluster import nodes_of


@contextmanager
def refusal_told(config: RunConfig | None) -> Iterator[None]:
    """Around all that the first node does, which first forgets an earlier refusal. A run of one node tells nobody; nor
    does one whose `runs_dir` is not there: whoever waits has made it."""
    if config is None or nodes_of(config) == 1:
        yield
        return
    file = _file(RunFolder(Path(config.runs_dir) / config.name))
    with suppress(OSError):
        file.unlink()
    try:
        yield
    except ScaleupError as error:
        if file.parent.is_dir():
            said = {"start": _start(), "id": uuid.uuid4().hex, "problems": [asdict(each) for each in error.problems]}
            with suppress(OSError):
                write_json(file, said)
        raise


class Refusals:
    """Heard by a node that has just been started. What an earlier start was refused for does not count."""

    def __init__(self, run: RunFolder) -> None:
        self._file = _file(run)
        self._first = self._read()

    def check(self) -> None:
        """Raises ScaleupError with what the first node was refused for."""
        said = self._read()
        if said is not None and (said != self._first or said["start"] == _start() != ""):
            raise ScaleupError([Problem(**problem) for problem in said["problems"]])

    def _read(self) -> dict[str, Any] | None:
        with suppress(OSError, ValueError):
            said: dict[str, Any] = read_json(self._file)
            return said
        return None


def _file(run: RunFolder) -> Path:
    return run.path.parent / f".{run.path.name}.refused.json"


def _start() -> str:
    """What the nodes of one start have in common; nothing where no scheduler says it. A first node may be refused
    before another has even begun to look."""
    job = os.environ.get("SLURM_HET_JOB_ID") or os.environ.get("SLURM_JOB_ID")
    return f"{job}.{os.environ.get('SLURM_STEP_ID')}.{os.environ.get('SLURM_RESTART_COUNT')}" if job else ""
