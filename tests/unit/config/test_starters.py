"""`scaleup init`: a config for every stage, which loads and plans once its files are there."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from scaleup.config.load import load_leniently
from scaleup.config.stages import STAGES
from scaleup.config.starters import FOLDER, write_starter
from scaleup.errors import ScaleupError
from scaleup.plan.machine import Machine
from scaleup.plan.resolve import resolve
from tests.describer import Describer

MACHINE = Machine(num_cores=8, num_gpus=0, memory=32 * 2**30)
MODELS = {
    "model": "builtin:tiny-llama",
    "teacher": "builtin:tiny-qwen2",
    "reward.model": "builtin:tiny-bert-classifier",
}
"""For those of a hub, and for runs that a user would name."""
OF_THE_MODEL = {
    "prune": ["prune.layers=1"],
    "ppo": ["reward.label=positive"],
    "rl": ['rewards.0.model.path="builtin:tiny-bert-classifier"', "rewards.0.label=positive"],
    "card": ['variants={small: "builtin:tiny-llama"}'],
}
"""What follows from the model that is named."""
FILES = {"train.jsonl", "test.jsonl", "prompts.jsonl", "pairs.jsonl", "rows.jsonl"}


@pytest.fixture
def rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    row = {"prompt": "a b", "completion": "c", "chosen": "good", "rejected": "bad", "text": "a b"}
    lines = [json.dumps({**row, "label": label}) for label in ("good", "bad")]
    for name in FILES:
        (tmp_path / name).write_text("\n".join([*lines, ""]) * 100)
    return tmp_path


def test_there_is_one_for_every_stage_and_no_other() -> None:
    assert {file.stem for file in FOLDER.glob("*.yaml")} == set(STAGES)


@pytest.mark.parametrize("stage", STAGES)
def test_loads_and_plans(stage: str, rows: Path, describer: Describer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "run", describer.run)
    file = write_starter(stage)
    assert file == Path(f"{stage}.yaml")
    named = [f"{key}.path={model}" for key, model in MODELS.items() if _has(file, key)]
    loaded = load_leniently(file, [*named, *OF_THE_MODEL.get(stage, ())])
    assert loaded.problems == []
    _, plan = resolve(loaded, MACHINE)
    assert plan.stage == stage
    assert not plan.notes or all("tested" not in note for note in plan.notes)


@pytest.mark.parametrize("stage", STAGES)
def test_says_what_a_user_edits(stage: str, rows: Path) -> None:
    text = write_starter(stage, Path("mine.yaml")).read_text()
    lines = text.splitlines()
    assert max(map(len, lines)) <= 120
    assert "scaleup run mine.yaml" in text
    assert "FILE" not in text
    values = yaml.safe_load(text)
    for key in ("name", "model"):
        assert key in values
    named = [line for line in lines if re.search(r"(: |^ +path: )(runs/|HuggingFaceTB/|\w+\.jsonl)", line)]
    told = [line for line in named if not line.lstrip().startswith("#")]
    assert told
    assert all("#" in line or "variants" in text for line in told), "a file of the user's is marked as such"


def test_every_commented_key_loads(rows: Path) -> None:
    """What is offered in a comment works when it is taken in, alone."""
    for stage in STAGES:
        lines = write_starter(stage, Path(f"{stage}-all.yaml")).read_text().splitlines()
        offered = [number for number, line in enumerate(lines) if re.match(r" *# \w+: [^ ]", line) and number > 8]
        for number in offered:
            taken = [line.replace("# ", "", 1) if at == number else line for at, line in enumerate(lines)]
            (rows / "taken.yaml").write_text("\n".join(taken))
            assert load_leniently(rows / "taken.yaml").problems == [], lines[number]


def test_never_overwrites(rows: Path) -> None:
    Path("sft.yaml").write_text("mine")
    with pytest.raises(ScaleupError, match=r"sft\.yaml: exists already -> name another"):
        write_starter("sft")
    assert Path("sft.yaml").read_text() == "mine"
    with pytest.raises(ScaleupError, match="cannot be written"):
        write_starter("sft", Path("nowhere/sft.yaml"))


def test_names_the_nearest_stage(rows: Path) -> None:
    with pytest.raises(ScaleupError, match=r"'distil' is no stage -> did you mean 'distill'\?"):
        write_starter("distil")
    assert not Path("distil.yaml").exists()


def _has(file: Path, key: str) -> bool:
    found: Any = yaml.safe_load(file.read_text())
    for part in key.split("."):
        found = found.get(part) if isinstance(found, dict) else None
    return found is not None
