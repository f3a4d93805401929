"""This module posts what the first node refuses for the nodes that wait for it: they end with the same mistakes, and at
once.

A notice beside the run folder, which may not be there yet (`runs/.NAME.refused.json`)."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from scaleup.artifacts.noticeboard import NoticeBoard
from scaleup.artifacts.run_folder import RunFolder
from scaleup.config.run import RunConfig
from scaleup.errors import Problem, ScaleupError
from scaleup.plan.cluster import nodes_of


@dataclass(frozen=True)
class Refusal:
    start: str
    id: str
    """Is new for each refusal: the same mistakes may be refused again."""
    problems: list[Problem]

    @classmethod
    def parse(cls, value: Any) -> Refusal:
        return cls(value["start"], value["id"], [Problem(**problem) for problem in value["problems"]])


@contextmanager
def refusal_posted(config: RunConfig | None) -> Iterator[None]:
    """Post what the block refuses, after withdrawing an earlier refusal. A run of one node posts nothing; nor does one
    whose `runs_dir` is not there: whoever waits has made it."""
    if config is None or nodes_of(config) == 1:
        yield
        return
    board, name = _place(RunFolder(Path(config.runs_dir) / config.name))
    with suppress(OSError):
        board.withdraw(name)
    try:
        yield
    except ScaleupError as error:
        with suppress(OSError):
            if board.folder.is_dir():
                board.post(name, asdict(Refusal(_start(), uuid.uuid4().hex, error.problems)))
        raise


class Refusals:
    """Reads the first node's refusals for a node that has just been started. What an earlier start was refused for does
    not count."""

    def __init__(self, run: RunFolder) -> None:
        self._board, self._name = _place(run)
        self._first = self._read()

    def check(self) -> None:
        """Raise ScaleupError with the first node's mistakes, once it has refused the run."""
        refusal = self._read()
        if refusal is not None and (refusal != self._first or refusal.start == _start() != ""):
            raise ScaleupError(refusal.problems)

    def _read(self) -> Refusal | None:
        return self._board.read(self._name, Refusal.parse)


def _place(run: RunFolder) -> tuple[NoticeBoard, str]:
    return NoticeBoard(run.path.parent), f".{run.path.name}.refused"


def _start() -> str:
    """Return what the nodes of one start have in common; nothing where no scheduler says it. A first node may be
    refused before another has even begun to look."""
    job = os.environ.get("SLURM_HET_JOB_ID") or os.environ.get("SLURM_JOB_ID")
    return f"{job}.{os.environ.get('SLURM_STEP_ID')}.{os.environ.get('SLURM_RESTART_COUNT')}" if job else ""
