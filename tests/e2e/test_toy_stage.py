"""A stage takes five files: those of tests/e2e/toy_stage, laid over a copy of the package whose registry gets one line
more, are planned, refused, run, killed, resumed, shown and derived from like every other stage."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import yaml

import scaleup as package
from tests.cli import interrupt, largest_weight_difference, reached, run, scaleup

pytestmark = pytest.mark.slow

TOY = Path(__file__).parent / "toy_stage"
CONFIG: dict[str, Any] = yaml.safe_load((TOY / "configs/toy.yaml").read_text(encoding="utf-8"))


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with rows, whose commands are those of a copy of the package with the toy stage."""
    copy = tmp_path / "house/scaleup"
    shutil.copytree(Path(package.__file__).parent, copy, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(TOY / "scaleup", copy, dirs_exist_ok=True)
    registry = copy / "config/stages/__init__.py"
    text = registry.read_text(encoding="utf-8")
    registry.write_text(text.replace('    "sft",\n', '    "sft",\n    "toy",\n', 1), encoding="utf-8")
    assert registry.read_text(encoding="utf-8") != text, "the one line of an existing file"
    monkeypatch.setenv("PYTHONPATH", str(copy.parent))
    rows = [{"text": f"review number {i}", "label": ("good", "bad")[i % 2]} for i in range(16)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return tmp_path


def test_five_files_are_a_stage() -> None:
    files = [file for file in TOY.rglob("*") if file.is_file() and "__pycache__" not in file.parts]
    assert len(files) == 5


def test_it_is_planned_and_refused(place: Path) -> None:
    file = place / "toy.yaml"
    file.write_text(yaml.safe_dump(CONFIG), encoding="utf-8")
    planned = scaleup("plan", file, "--json", cwd=place)
    assert planned.code == 0, planned.stderr
    plan = json.loads(planned.stdout)
    assert (plan["stage"], plan["batch"]["num_steps"], plan["model"]["model_type"]) == ("toy", 8, "llama")
    refused = scaleup("plan", file, "toy.label_smoothing=2", "toy.smooth=1", "mixed_precision=bf16", cwd=place)
    assert refused.code == 2
    lines = [line for line in refused.stderr.splitlines() if line.startswith("error: ")]
    assert [line.split(":")[1].strip() for line in lines] == ["toy.label_smoothing", "toy.smooth", "mixed_precision"]


@pytest.mark.long
def test_it_is_run_killed_resumed_shown_and_derived_from(place: Path) -> None:
    straight = run({**CONFIG, "name": "straight"}, cwd=place)
    losses = [json.loads(line)["loss"] for line in (straight / "metrics.jsonl").read_text().splitlines()]
    assert losses[-1] < losses[0]

    killed = interrupt(
        CONFIG, cwd=place, when=reached(4), do=lambda process, folder: process.send_signal(signal.SIGKILL)
    )
    assert killed.code != 0
    again = scaleup("run", place / "toy.yaml", "--resume", cwd=place)
    assert again.code == 0, again.stderr
    assert "train_loss" in again.stdout, "the table of a training"
    assert largest_weight_difference(straight, place / "runs/toy") == 0

    evaluated = scaleup("evaluate", "runs/toy", cwd=place)
    assert evaluated.code == 0, evaluated.stderr
    metrics = json.loads((place / "runs/toy/evaluations/1/metrics.json").read_text())
    assert metrics["model"]["perplexity"] < metrics["baseline"]["perplexity"]
    exported = scaleup("export", "runs/toy", cwd=place)
    assert exported.code == 0, exported.stderr
