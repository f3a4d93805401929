"""Nodes that wait for the first one hear what it is refused for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from scaleup.artifacts.run_folder import RunFolder
from scaleup.config.load import load_mapping
from scaleup.config.run import RunConfig
from scaleup.errors import Problem, ScaleupError
from scaleup.launcher.refusal import Refusals, refusal_posted
from tests.cli import differing
from tests.unit.plan.conftest import RAW

TWO_NODES = {"num_processes": 2, "num_nodes": 2}
MISTAKES = [Problem("data.train", "is gone", "bring it back"), Problem("name", "is odd")]


@pytest.fixture(autouse=True)
def outside_of_slurm(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SLURM_JOB_ID", "SLURM_HET_JOB_ID", "SLURM_STEP_ID", "SLURM_RESTART_COUNT"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    """Of a run on two nodes, one of which waits already: it has made the folder of runs."""
    (tmp_path / "runs").mkdir()
    return config_of(tmp_path)


def config_of(folder: Path, **changes: Any) -> RunConfig:
    loaded = load_mapping(differing(RAW, {"runs_dir": str(folder / "runs"), "parallel": TWO_NODES, **changes}))
    assert loaded.config is not None and loaded.problems == []
    return loaded.config


def refuse(config: RunConfig) -> None:
    with pytest.raises(ScaleupError), refusal_posted(config):
        raise ScaleupError(MISTAKES)


def run_of(config: RunConfig) -> RunFolder:
    return RunFolder(Path(config.runs_dir) / config.name)


def test_all_mistakes_are_heard(config: RunConfig) -> None:
    waiting = Refusals(run_of(config))
    waiting.check()
    refuse(config)
    with pytest.raises(ScaleupError) as caught:
        waiting.check()
    assert caught.value.problems == MISTAKES


def test_what_an_earlier_start_was_refused_for_is_not(config: RunConfig) -> None:
    refuse(config)
    waiting = Refusals(run_of(config))
    waiting.check()
    refuse(config)  # for the same mistakes
    with pytest.raises(ScaleupError):
        waiting.check()


def test_within_one_job_it_does_not_matter_who_is_first(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    refuse(config)
    with pytest.raises(ScaleupError):
        Refusals(run_of(config)).check()
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    Refusals(run_of(config)).check()


def test_what_is_no_refusal(config: RunConfig) -> None:
    refuse(config)
    with refusal_posted(config):
        pass
    assert list(Path(config.runs_dir).iterdir()) == [], "an earlier one is forgotten"
    (Path(config.runs_dir) / ".x.refused.json").write_text("{", encoding="utf-8")
    Refusals(run_of(config)).check()


def test_where_nobody_waits_nothing_is_written(tmp_path: Path) -> None:
    refuse(config_of(tmp_path))
    (tmp_path / "runs").mkdir()
    refuse(config_of(tmp_path, parallel={}))
    assert list((tmp_path / "runs").iterdir()) == []
    with pytest.raises(ScaleupError), refusal_posted(None):
        raise ScaleupError(MISTAKES)
