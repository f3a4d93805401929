"""Every config that the repository offers loads and plans, and its plan is the one in tests/goldens/plans: on a
machine that is the same everywhere."""

from __future__ import annotations

import json
import os
import re
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import yaml

from scaleup.config.load import load_leniently, read_mapping
from scaleup.data.prepared import TOKENIZING
from scaleup.errors import ScaleupError
from scaleup.plan.machine import Machine
from scaleup.plan.resolve import resolve
from scaleup.studies.pipeline import read_pipeline
from scaleup.studies.search import read_search
from scaleup.studies.search_check import points_of
from tests.describer import Describer
from tests.golden import GOLDENS, Golden

pytestmark = pytest.mark.covers("plans")
REPOSITORY = Path(__file__).parent.parent.parent
PIPELINES = sorted((REPOSITORY / "configs/pipelines").glob("*.yaml"))
SEARCHES = sorted((REPOSITORY / "configs/search").glob("*.yaml"))
CONFIGS = sorted({*(REPOSITORY / "configs").rglob("*.y*ml")} - {*PIPELINES, *SEARCHES})
STAND_INS = {
    "google/flan-t5-base": "builtin:tiny-t5",
    "facebook/roberta-hate-speech-dynabench-r4-target": "builtin:tiny-hate-classifier",
}
"""For models of a hub, which no test asks: of the same architecture or the same labels, so that all else is planned."""
MACHINE = Machine(num_cores=8, num_gpus=0, memory=32 * 2**30)


def test_there_are_some() -> None:
    assert {"sft/reviews.yaml"} <= {str(file.relative_to(REPOSITORY / "configs")) for file in CONFIGS}
    names = {name for file in CONFIGS for name in re.findall(r"^name: (\S+)$", file.read_text(), re.MULTILINE)}
    assert len(names) == len(CONFIGS), "two configs of one name would share a run folder"


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The user's models, whose converting takes half a minute, but none of the facts remembered of them."""
    kept = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "scaleup"
    cache = tmp_path_factory.mktemp("cache")
    (cache / "scaleup").mkdir()
    for name in ("builtin", "converter", "packages"):
        if name != "converter":  # an empty one would look like one that make setup has fetched
            (kept / name).mkdir(parents=True, exist_ok=True)
        (cache / "scaleup" / name).symlink_to(kept / name)
    return cache


@pytest.mark.skipif(
    not (REPOSITORY / "data/reviews/train.jsonl").is_file(), reason="data/reviews is not there: make setup prepares it"
)
@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: str(file.relative_to(REPOSITORY / "configs")))
def test_plans(
    file: Path,
    cache: Path,
    tmp_path: Path,
    golden: Golden,
    describer: Describer,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """The user's own runs are not looked at: `auto` would stay with what a run of this name used. What it trains can be
    traced, and nothing but the plan is said."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    monkeypatch.chdir(REPOSITORY)
    monkeypatch.setattr(subprocess, "run", describer.run)
    keys = ("model", "reward.model", "evaluation.toxicity_model")
    named = {f"{key}.path": _path_at(file, f"{key}.path") for key in keys}
    changes = [f"{key}={STAND_INS[path]}" for key, path in named.items() if path in STAND_INS]
    loaded = load_leniently(file, [*changes, f"runs_dir={tmp_path}"])
    assert loaded.problems == []
    assert loaded.config is not None
    for model in (loaded.config.model, getattr(loaded.config, "baseline", None)):
        if model is not None and not _is_here(model.path):
            pytest.skip(f"{model.path} is not installed: make setup does it")
    if loaded.config.stage == "reward" and not (REPOSITORY / "data/reviews/pairs/train.jsonl").is_file():
        pytest.skip("data/reviews/pairs is not there: make setup prepares it")
    runs = [REPOSITORY / run for run in _runs_named(file)]
    if runs and not any(run.exists() for run in runs):
        with pytest.raises(ScaleupError) as refused:
            resolve(loaded, MACHINE, check_run_folder=False)
        golden.check(golden_of(file), "".join(f"error: {problem}\n" for problem in refused.value.problems))
        return
    for run in runs:
        if not (run / "manifest.json").is_file():
            pytest.skip(f"{run} has not been made: the file says by which config")
    config, plan = resolve(loaded, MACHINE, check_run_folder=False)
    said = capfd.readouterr().err.splitlines()
    assert plan.model.untraced is None and [line for line in said if TOKENIZING not in line] == []
    assert plan.name == config.name
    assert config.name in (file.stem, f"{config.stage}-{file.stem}"), "a config's run is named after its file"
    assert plan.run_folder == str(tmp_path / config.name)
    assert plan.model.num_parameters > 0
    assert plan.group("policy").num_processes == config.parallel.num_processes
    if plan.batch is not None:
        assert plan.batch.num_steps is not None, "an offered config says how long it takes"
    if not runs:
        text = json.dumps(plan.model_dump(mode="json"), indent=2) + "\n"
        golden.check(golden_of(file), text, {"RUNS": tmp_path})


@pytest.mark.parametrize("file", PIPELINES, ids=lambda file: file.name)
def test_a_pipeline_is_of_configs_that_load(file: Path) -> None:
    pipeline = read_pipeline(file, read_mapping(file))
    assert [*pipeline.problems, *(problem for run in pipeline.runs.values() for problem in run.loaded.problems)] == []
    assert pipeline.name == file.stem
    assert len(pipeline.runs) > 2


@pytest.mark.parametrize("file", SEARCHES, ids=lambda file: file.name)
def test_a_search_is_of_configs_that_load(file: Path) -> None:
    search = read_search(file, read_mapping(file))
    points = list(points_of(search))
    assert [*search.problems, *(problem for point in points for problem in search.load(point).problems)] == []
    assert search.config.study == f"search-{file.stem}" and len(points) > 1


def test_no_golden_is_of_another_config() -> None:
    written = {file.relative_to(GOLDENS) for file in (GOLDENS / "plans").rglob("*") if file.is_file()}
    assert written == {Path(golden_of(file)) for file in CONFIGS}


def golden_of(file: Path) -> str:
    """Of a plan, or of the refusal where runs are named: nobody's runs are in the repository."""
    config = file.relative_to(REPOSITORY / "configs")
    return str("plans" / config.with_suffix(".txt" if _runs_named(file) else ".json"))


def _runs_named(file: Path) -> list[str]:
    """Models that are runs of other configs."""
    return re.findall(r"runs/[\w.-]+", "\n".join(line.partition("#")[0] for line in file.read_text().splitlines()))


def _path_at(file: Path, dotted: str) -> str | None:
    found: Any = yaml.safe_load(file.read_text(encoding="utf-8"))
    for key in dotted.split("."):
        found = found.get(key) if isinstance(found, dict) else None
    return found


def _is_here(path: str) -> bool:
    try:
        return not path.startswith("package:") or bool(metadata.distribution(path.removeprefix("package:")))
    except metadata.PackageNotFoundError:
        return False
