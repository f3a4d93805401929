"""Runs of seconds that several files hurt, spread or schedule: where they are, and the one they are compared with."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.cli import differing, run
from tests.small_runs import write_rows


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of a module's own with the rows of `small_runs`."""
    folder = tmp_path_factory.mktemp("small_runs")
    write_rows(folder)
    return folder


@pytest.fixture(scope="module")
def colocated(request: pytest.FixtureRequest, place: Path, pool: ThreadPoolExecutor) -> Future[Path]:
    """The module's PPO without a reward group, which ends like every run that has one."""
    alone = {"name": "colocated", "reward.placement": "colocated", "reward.own_nodes": False}
    return pool.submit(run, differing(request.module.PPO, alone), cwd=place)
