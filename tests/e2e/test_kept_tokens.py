"""The rows that are kept as tokens, through the real command line: runs and nodes that come at once make them once, and
none reads what is not whole."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from scaleup.artifacts.token_cache import MAKE, Lock
from tests.cli import (
    TIMEOUT,
    Result,
    differing,
    folder_of,
    largest_loss_difference,
    logs,
    scaleup,
    start,
    wait_until,
    write_config,
)
from tests.small_runs import SFT, write_rows

pytestmark = pytest.mark.slow
TWO = {"train.per_device_train_batch_size": 1, "parallel.num_processes": 2}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with rows, and a cache of the module's own."""
    folder = tmp_path_factory.mktemp("kept")
    write_rows(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        yield folder


@pytest.fixture(scope="module")
def alone(place: Path) -> Path:
    run_well(config_of("alone"), place)
    return place / "runs/alone"


@pytest.fixture
def entry(place: Path, alone: Path) -> Path:
    """Where the rows' tokens are."""
    [found] = (place / "cache/scaleup/tokens").glob("[!.]*")
    return found


@pytest.fixture
def cleared(place: Path, entry: Path) -> Path:
    """Where they will be again."""
    result = scaleup("cache", "clear", cwd=place)
    assert result.code == 0 and " freed in " in result.stdout and not entry.exists()
    return entry


def config_of(name: str, **changes: Any) -> dict[str, Any]:
    return differing(SFT, {"name": name, "train.max_steps": 3, **changes})


@contextmanager
def launched(
    place: Path, *commands: tuple[Mapping[str, Any], tuple[str, ...]]
) -> Iterator[list[subprocess.Popen[str]]]:
    """Runs of configs, with further arguments; none outlives the test."""
    runs = [start("run", write_config(config, place), *arguments, cwd=place) for config, arguments in commands]
    try:
        yield runs
    finally:
        for run in runs:
            run.kill()
            run.communicate()


def run_well(config: Mapping[str, Any], place: Path) -> Result:
    result = scaleup("run", write_config(config, place), cwd=place)
    assert result.code == 0, f"{result}\n{logs(place)}"
    return result


def ended(runs: list[subprocess.Popen[str]]) -> list[Result]:
    outputs = [run.communicate(timeout=TIMEOUT) for run in runs]
    return [Result(run.returncode, *output) for run, output in zip(runs, outputs, strict=True)]


@contextmanager
def making(entry: Path) -> Iterator[tuple[Lock, Path]]:
    """Makes the entry's tokens, as everybody else sees it, until the lock is given back; and with which file."""
    file = entry.parent / f".{entry.name}.{MAKE}"
    lock = Lock(file)
    assert lock.take(alone=True)
    try:
        yield lock, file
    finally:
        lock.release()


def with_open(file: Path) -> set[int]:
    """The other processes that have a file open."""
    found = set()
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        with suppress(OSError):
            if link.readlink() == file:
                found.add(int(link.parts[2]))
    return found - {os.getpid()}


@pytest.mark.parametrize("how", ["two runs", "two nodes"])
def test_those_that_come_at_once_make_them_once(how: str, place: Path, alone: Path, cleared: Path) -> None:
    """Two processes wait until they may make them: the second one reads what the first has made."""
    if how == "two runs":
        configs = [config_of("first"), config_of("second")]
        commands: list[tuple[dict[str, Any], tuple[str, ...]]] = [(config, ()) for config in configs]
    else:
        nodes = config_of("nodes", **TWO, **{"parallel.num_nodes": 2, "parallel.main_address": "127.0.0.1"})
        commands = [(nodes, ()), (nodes, ("--node-rank", "1"))]
    with making(cleared) as (lock, file), launched(place, *commands) as runs:
        wait_until(lambda: len(with_open(file)) == 2 or any(run.poll() is not None for run in runs))
        assert not cleared.exists()
        lock.release()
        wait_until(lambda: cleared.exists() or any(run.poll() for run in runs), every=0.002)
        first = cleared.stat().st_ino if cleared.exists() else 0
        results = ended(runs)
    assert [result.code for result in results] == [0, 0], f"{results}\n{logs(place)}"
    assert cleared.stat().st_ino == first, "they were made again"
    assert list(cleared.parent.glob("[!.]*")) == [cleared] and not list(cleared.parent.glob("*.tmp"))
    assert json.loads((cleared / "about.json").read_text())["rows"] == 20
    for config, _ in commands:
        assert largest_loss_difference(alone, folder_of(config, place)) <= 1e-5


def test_those_that_are_damaged_between_two_runs_are_made_again(place: Path, alone: Path, entry: Path) -> None:
    """Whichever rank sees it first, the user hears of it, once."""
    file = entry / "rows.arrow"
    file.write_bytes(bytes(file.stat().st_size))
    config = config_of("damaged", **TWO)
    result = run_well(config, place)
    said = [line for line in (result.stdout + result.stderr).splitlines() if "is damaged" in line]
    assert said == [f"{file} is damaged: its bytes are not those that were written; it is made again"]
    assert largest_loss_difference(alone, folder_of(config, place)) <= 1e-5
