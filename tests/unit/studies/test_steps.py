"""What there is to do for a run follows from its folder, its config, its rows, and its inputs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from scaleup.artifacts.files import write_json
from scaleup.artifacts.run_folder import RunFolder
from scaleup.errors import ScaleupError
from scaleup.studies.pipeline import Pipeline
from scaleup.studies.steps import steps_of
from tests.unit.studies.folders import RUNS, begin, finish, made, pipeline_of, write_rows

CHANGED = {**RUNS, "child": {**RUNS["child"], "overrides": {"model.path": "${base}", "train.max_steps": 7}}}


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_rows(tmp_path)
    return tmp_path


def actions(pipeline: Pipeline) -> dict[str, str]:
    return {name: step.action for name, step in steps_of(pipeline, list(pipeline.runs)).items()}


def why(pipeline: Pipeline, name: str) -> str:
    return steps_of(pipeline, list(pipeline.runs))[name].why


def test_what_is_not_there_is_run() -> None:
    assert set(actions(pipeline_of()).values()) == {"run"}
    assert why(pipeline_of(), "child") == "after base"


def test_what_has_finished_is_skipped() -> None:
    assert set(actions(made()).values()) == {"skip"}


def test_what_was_killed_goes_on() -> None:
    pipeline = made("base", "other")
    begin(pipeline.runs["child"])
    assert actions(pipeline) == {"base": "skip", "child": "resume", "evaluation": "run", "other": "skip"}


def test_what_has_changed_is_made_again_with_all_that_needs_it() -> None:
    made()
    pipeline = pipeline_of(CHANGED)
    assert actions(pipeline) == {"base": "skip", "child": "again", "evaluation": "again", "other": "skip"}
    assert why(pipeline, "child") == "train.max_steps changed"
    assert why(pipeline, "evaluation") == "child is made before it"


def test_what_has_changed_before_it_finished_is_made_again() -> None:
    made("base", "other")
    begin(pipeline_of().runs["child"])
    assert actions(pipeline_of(CHANGED))["child"] == "again"


def test_an_input_that_was_made_again_makes_a_run_stale(place: Path) -> None:
    made()
    finish(pipeline_of().runs["base"], loss=1.0)
    pipeline = pipeline_of()
    assert actions(pipeline) == {"base": "skip", "child": "again", "evaluation": "again", "other": "skip"}
    assert why(pipeline, "child") == f"model.path: {place / 'runs/p-base'} was made again since"


def test_other_rows_are_other_runs(place: Path) -> None:
    made()
    write_rows(place, count=4)
    assert why(pipeline_of(), "base").startswith("data.train.0.path: 'rows.jsonl' has changed since the run began")
    assert set(actions(pipeline_of()).values()) == {"again"}


def test_rows_that_a_run_has_written_are_an_input_too(place: Path) -> None:
    reader = {"config": RUNS["base"]["config"], "overrides": {"data.train": "${evaluation}/rows.jsonl"}}
    made("base", "child", "evaluation")
    write_rows(place / "runs/p-evaluation")
    runs = {**RUNS, "reader": reader}
    made("reader", runs=runs)
    assert actions(pipeline_of(runs))["reader"] == "skip"
    finish(pipeline_of().runs["evaluation"], loss=1.0)
    assert why(pipeline_of(runs), "reader") == f"data.train.0.path: {place / 'runs/p-evaluation'} was made again since"


def test_another_version_of_the_code_makes_another_run() -> None:
    pipeline = made()
    file = pipeline.runs["other"].folder.manifest_file
    manifest = json.loads(file.read_text())
    manifest["lineage"]["code"]["version"] = "0.0.1"
    write_json(file, manifest)
    assert why(pipeline, "other").startswith("scaleup 0.0.1 made it, and this is ")


def test_a_run_of_an_earlier_version_is_known_by_its_config_and_rows() -> None:
    pipeline = made()
    for run in pipeline.runs.values():
        manifest = json.loads(run.folder.manifest_file.read_text())
        del manifest["lineage"]
        write_json(run.folder.manifest_file, manifest)
        run.folder.lineage_file.unlink()
    assert set(actions(pipeline).values()) == {"skip"}
    assert actions(pipeline_of(CHANGED))["child"] == "again"


def test_how_answers_are_measured_matters_to_an_evaluation_alone() -> None:
    made()
    settings = {"generation.max_new_tokens": 3}
    changed = {
        **RUNS,
        "other": {"config": RUNS["other"]["config"], "overrides": settings},
        "evaluation": {"config": RUNS["evaluation"]["config"], "overrides": settings},
    }
    assert actions(pipeline_of(changed)) == {"base": "skip", "child": "skip", "evaluation": "again", "other": "skip"}


def test_a_folder_that_is_no_run_is_left_alone() -> None:
    folder = pipeline_of().runs["other"].folder.path
    folder.mkdir(parents=True)
    (folder / "thesis.tex").touch()
    with pytest.raises(ScaleupError, match=r"runs\.other: runs_dir/name .* exists and is no run folder"):
        actions(pipeline_of())


def test_those_that_are_not_chosen_count_as_they_are() -> None:
    made("base")
    pipeline = pipeline_of(CHANGED)
    assert steps_of(pipeline, ["child"])["child"].action == "run"


def test_what_a_manifest_says_of_its_making(place: Path) -> None:
    run = made().runs["child"]
    manifest = run.folder.manifest()
    assert manifest is not None and manifest.lineage is not None
    lineage = manifest.lineage
    assert lineage == RunFolder(place / "runs/p-child").lineage()
    assert lineage.parents["model.path"].run == str(place / "runs/p-base")
    assert (lineage.data["data.train.0"].num_rows, lineage.data["data.train.0"].num_files) == (3, 1)
    assert lineage.packages.keys() >= {"python", "torch", "transformers"}
    assert lineage.machine.num_cores >= 1
