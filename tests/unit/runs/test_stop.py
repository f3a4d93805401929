"""Which process is asked to stop, and what is said once it has ended."""

from __future__ import annotations

from pathlib import Path

import pytest
from rich.console import Console

from scaleup.errors import ScaleupError
from scaleup.runs import stop as module
from scaleup.runs.logs import INTERRUPTED
from scaleup.runs.state import read_state
from scaleup.runs.stop import stop_run
from tests.unit.runs.made import elsewhere, ended, held, made


@pytest.fixture
def console() -> Console:
    return Console(record=True, width=300)


def test_a_run_saves_and_can_go_on(tmp_path: Path, console: Console) -> None:
    run = made(tmp_path, metrics=[{"step": 3, "loss": 1.0}])
    with held(run) as process:
        assert stop_run(run.path, console) == 0
        assert process.wait(30) == 75
    said = console.export_text()
    assert f"waiting for process {process.pid}" in said
    assert f"was stopped after step 3 and can go on: scaleup run {run.config_file} --resume" in said


def test_a_process_that_lives_on(tmp_path: Path, console: Console) -> None:
    """It does something else once the run has ended: it is not waited for."""
    with held(run := made(tmp_path), lives_on=True) as process:
        assert stop_run(run.path, console) == 0
        assert process.poll() is None
    assert "can go on" in console.export_text()


def test_a_node_that_is_not_the_first_passes_it_on(tmp_path: Path, console: Console) -> None:
    run = made(tmp_path, num_nodes=2)
    with held(run, node_rank=1) as process:
        assert stop_run(run.path, console) == 0
        assert process.wait(30) == 75


@pytest.mark.parametrize(("ends", "code", "words"), [("finished", 0, "has finished"), ("failed", 1, "has failed: why")])
def test_how_else_it_may_end(tmp_path: Path, console: Console, ends: str, code: int, words: str) -> None:
    run = made(tmp_path)
    with held(run, ends=ends):
        assert stop_run(run.path, console) == code
    assert words in console.export_text()


def test_a_process_that_has_not_the_lock_is_left_alone(tmp_path: Path, console: Console) -> None:
    """The one that had it has ended since we looked, and its id was used again."""
    run, other = made(tmp_path), made(tmp_path, "other")
    with held(other) as process:
        module._stop(run, process.pid, console)
        assert read_state(other.path).state == "running"
    assert read_state(other.path).state == "unfinished", "it ended by itself"
    module._stop(run, process.pid, console)
    assert console.export_text() == ""


def test_one_who_waits_no_longer(tmp_path: Path, console: Console, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    run = made(tmp_path)
    with held(run):
        monkeypatch.setattr(module.select, "select", interrupt)
        assert stop_run(run.path, console) == INTERRUPTED
    assert "stops once it has saved" in console.export_text()


def test_refusals(tmp_path: Path, console: Console, monkeypatch: pytest.MonkeyPatch) -> None:
    run = ended(made(tmp_path), "stopped")
    with pytest.raises(ScaleupError, match="does not run now -> it is stopped"):
        stop_run(run.path, console)
    with pytest.raises(ScaleupError, match="is no run folder"):
        stop_run(tmp_path, console)
    run = made(tmp_path, "there")
    elsewhere(run, monkeypatch)
    with pytest.raises(ScaleupError, match=f"runs on host far, .* -> type there: scaleup stop {run.path}"):
        stop_run(run.path, console)
