"""A pipeline's YAML becomes runs with configs, inputs and an order; what is wrong with it is told all at once."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from scaleup.config.load import load_mapping
from scaleup.errors import ScaleupError
from scaleup.studies.pipeline import read_pipeline
from tests.unit.studies.folders import RUNS, SFT, pipeline_of, write_rows


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_rows(tmp_path)
    return tmp_path


def lines(pipeline: object) -> list[str]:
    return [str(problem) for problem in pipeline.problems]  # type: ignore[attr-defined]


def test_runs_come_after_those_that_they_need() -> None:
    pipeline = pipeline_of()
    assert list(pipeline.runs) == ["base", "child", "evaluation", "other"]
    assert pipeline.runs["evaluation"].parents == ("child",)
    assert pipeline.below("base") == ["base", "child", "evaluation"]
    assert pipeline.below("other") == ["other"]
    assert pipeline.problems == []


def test_an_input_is_a_run_folder_wherever_it_stands(place: Path) -> None:
    rows = {"config": SFT, "overrides": {"data.train": [{"path": "${base}/rows.jsonl"}], "model.path": "${base}"}}
    run = pipeline_of({"base": {"config": SFT}, "child": rows}).runs["child"]
    assert run.config.model.path == str(place / "runs/p-base")
    assert run.config.data.train[0].path == str(place / "runs/p-base/rows.jsonl")
    assert [(each.key, each.is_whole) for each in run.inputs] == [("model.path", True), ("data.train.0.path", False)]


def test_config_files_lie_beside_the_pipeline_and_keep_their_names(place: Path) -> None:
    (place / "sft.yaml").write_text(yaml.safe_dump({**SFT, "name": "mine", "runs_dir": "elsewhere"}))
    run = pipeline_of({"base": {"config": "sft.yaml", "overrides": {"train.max_steps": 2}}}, "base.train.seed=5").runs
    assert run["base"].folder.path == place / "elsewhere/mine"
    assert (run["base"].config.train.max_steps, run["base"].config.train.seed) == (2, 5)


def test_a_circle_is_named_once() -> None:
    runs = RUNS | {"base": {"config": SFT, "overrides": {"model.path": "${evaluation}"}}}
    assert lines(pipeline_of(runs)) == [
        "runs: evaluation -> child -> base -> evaluation is a circle -> leave one of these inputs out"
    ]


def test_mistakes_are_all_there() -> None:
    runs = {
        "base": {"config": SFT, "overrides": {"name": "same"}},
        "child": {"config": SFT, "overrides": {"name": "same", "model.path": "${bse}"}},
        "odd name": {"config": SFT},
        "file": {"config": "nowhere.yaml"},
        "bare": "sft.yaml",
        "keys": {"configs": SFT, "config": 3, "overrides": ["a=b"]},
    }
    pipeline = pipeline_of(runs, "base=3", "basis.train.seed=1", extra=1)
    assert [line.partition(" -> ")[0] for line in lines(pipeline)] == [
        "extra: is no key of a pipeline",
        "base=3: overrides no run of the pipeline",
        "basis.train.seed=1: overrides no run of the pipeline",
        "runs.file.config: nowhere.yaml: there is no such config file",
        "runs.bare: is no mapping",
        "runs.keys.configs: is no key of a run",
        "runs.keys.config: 3 is neither a file nor a config",
        "runs.keys.overrides: ['a=b'] is no mapping of keys to values",
        "runs.odd name: is no name of a run",
        f"runs.child: name: its folder would be {Path('runs/same').absolute()}, which is that of runs.base",
    ]
    assert [str(each) for each in pipeline.runs["child"].loaded.problems] == [
        "model.path: there is no run 'bse' in the pipeline -> did you mean 'base'?"
    ]


@pytest.mark.parametrize("runs", [None, {}, ["sft"]])
def test_a_pipeline_lists_runs(runs: object) -> None:
    with pytest.raises(ScaleupError, match="runs: is no mapping"):
        read_pipeline(Path("pipeline.yaml"), {"pipeline": "p", "runs": runs})


def test_one_run_is_asked_for_and_there_are_several() -> None:
    loaded = load_mapping({"pipeline": "p", "runs": {}})
    assert [problem.where for problem in loaded.problems] == ["pipeline"]
