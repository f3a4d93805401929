"""Every config that the repository offers loads and plans on this machine."""

from __future__ import annotations

import re
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import yaml

from scaleup.config.load import load_leniently
from scaleup.plan.resolve import resolve
from tests.describer import Describer

REPOSITORY = Path(__file__).parent.parent.parent
CONFIGS = sorted((REPOSITORY / "configs").rglob("*.y*ml"))
STAND_INS = {
    "google/flan-t5-base": "builtin:tiny-t5",
    "facebook/roberta-hate-speech-dynabench-r4-target": "builtin:tiny-hate-classifier",
}
"""For models of a hub, which no test asks: of the same architecture or the same labels, so that all else is planned."""


def test_there_are_some() -> None:
    assert {"sft/reviews.yaml"} <= {str(file.relative_to(REPOSITORY / "configs")) for file in CONFIGS}
    names = {name for file in CONFIGS for name in re.findall(r"^name: (\S+)$", file.read_text(), re.MULTILINE)}
    assert len(names) == len(CONFIGS), "two configs of one name would share a run folder"


@pytest.mark.skipif(
    not (REPOSITORY / "data/reviews/train.jsonl").is_file(), reason="data/reviews is not there: make setup prepares it"
)
@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: str(file.relative_to(REPOSITORY / "configs")))
def test_plans(file: Path, describer: Describer, monkeypatch: pytest.MonkeyPatch) -> None:
    """The user's own cache is used on purpose: converting the embedded model takes half a minute."""
    monkeypatch.chdir(REPOSITORY)
    monkeypatch.setattr(subprocess, "run", describer.run)
    keys = ("model", "reward.model", "evaluation.toxicity_model")
    named = {f"{key}.path": _path_at(file, f"{key}.path") for key in keys}
    loaded = load_leniently(file, [f"{key}={STAND_INS[path]}" for key, path in named.items() if path in STAND_INS])
    assert loaded.problems == []
    assert loaded.config is not None
    for model in (loaded.config.model, getattr(loaded.config, "baseline", None)):
        if model is not None and not _is_here(model.path):
            pytest.skip(f"{model.path} is not installed: make setup does it")
    for run in _runs_named(file):
        if not (REPOSITORY / run / "manifest.json").is_file():
            pytest.skip(f"{run} has not been made: the file says by which config")
    if loaded.config.stage == "reward" and not (REPOSITORY / "data/reviews/pairs/train.jsonl").is_file():
        pytest.skip("data/reviews/pairs is not there: make setup prepares it")
    config, plan = resolve(loaded, check_run_folder=False)
    assert plan.name == config.name
    assert config.name in (file.stem, f"{config.stage}-{file.stem}"), "a config's run is named after its file"
    assert plan.run_folder == str(REPOSITORY / "runs" / config.name)
    assert plan.model.num_parameters > 0
    assert plan.group("policy").num_processes == config.parallel.num_processes
    if plan.batch is not None:
        assert plan.batch.num_steps is not None, "an offered config says how long it takes"


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
