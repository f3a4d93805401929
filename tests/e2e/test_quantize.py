"""Quantize through the command line; then the folder is evaluated beside what it was made of, and generated from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.cli import run, scaleup

pytestmark = pytest.mark.covers("quantize")
CONFIG: dict[str, Any] = {
    "stage": "quantize",
    "name": "low",
    "model": {"path": "builtin:tiny-llama"},
    "data": {"test": "rows.jsonl", "prompt": "{word}:", "completion": " {answer}", "max_length": 64},
    "quantize": {"method": "int8_weight_only"},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("quantize")
    rows = [{"word": "ab" * (i % 5 + 1), "answer": "pq"[i % 2] * 3} for i in range(12)]
    (place / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return run(CONFIG, cwd=place)


def test_what_it_made(folder: Path) -> None:
    found = json.loads((folder / "manifest.json").read_text())["metrics"]
    assert found["bytes"] == (folder / "model/model.safetensors").stat().st_size < 0.6 * found["bytes_before"]
    assert found["bits"] == pytest.approx(8 * found["bytes"] / found["num_parameters"])
    assert 0 < found["moved"] < 0.05 and found["reloaded"] == 0
    assert found["matrices"] == 14 and found["left"] == 1
    assert found["perplexity"] == pytest.approx(found["perplexity_before"], rel=0.02)
    assert found["perplexity"] != found["perplexity_before"]
    assert "| moved |" in (folder / "model/README.md").read_text()


@pytest.mark.slow
def test_it_is_a_model_to_evaluate(folder: Path) -> None:
    """The very numbers that the stage gave."""
    result = scaleup("evaluate", folder, "evaluation.metrics=[perplexity]", cwd=folder.parent.parent)
    assert result.code == 0, result.stderr
    found = json.loads((folder / "evaluations/1/metrics.json").read_text())
    told = json.loads((folder / "manifest.json").read_text())["metrics"]
    assert found["model"]["perplexity"] == pytest.approx(told["perplexity"], rel=1e-6)
    assert found["baseline"]["perplexity"] == pytest.approx(told["perplexity_before"], rel=1e-6)


@pytest.mark.slow
def test_it_is_a_model_to_generate_from(folder: Path) -> None:
    more = ("generation.max_new_tokens=4", "--prompt", "ab:")
    result = scaleup("generate", folder, *more, cwd=folder.parent.parent)
    assert result.code == 0, result.stderr
    answer = json.loads((folder / "generations/1/generations.jsonl").read_text())
    assert answer["prompt"] == "ab:" and answer["completion"]
