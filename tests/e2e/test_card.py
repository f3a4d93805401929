"""A deployment card through the command line: what it says of variants that were made on purpose."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from scaleup.models.sources import materialize
from tests.cli import run

pytestmark = pytest.mark.covers("card")
CONFIG: dict[str, Any] = {
    "stage": "card",
    "name": "card",
    "model": {"path": "builtin:tiny-llama"},
    "variants": {"bfloat16": "low", "same": "same"},
    "data": {"test": "rows.jsonl", "prompt": "{word}:", "completion": " {answer}", "max_length": 64},
    "card": {"prompt_tokens": 16, "new_tokens": 4, "repeats": 2, "rounds": 2, "max_rows": 6},
    "evaluation": {"metrics": ["perplexity", "exact_match"]},
    "generation": {"max_new_tokens": 4},
    "parallel": {"strategy": "single"},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("card")
    base = materialize("builtin:tiny-llama")
    for name, dtype in (("low", torch.bfloat16), ("same", torch.float32)):
        AutoModelForCausalLM.from_pretrained(base, dtype=dtype).save_pretrained(folder / name)
        AutoTokenizer.from_pretrained(base).save_pretrained(folder / name)
    words = ("one", "two", "three", "four", "five", "six", "seven", "eight")
    rows = [{"word": word, "answer": word[::-1]} for word in words]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return run(CONFIG, cwd=folder)


def test_the_card(folder: Path) -> None:
    models = json.loads((folder / "card.json").read_text())["models"]
    assert list(models) == ["model", "bfloat16", "same"]
    assert models["same"]["quality"]["divergence"] == 0
    assert models["same"]["quality"]["agreement"] == 1
    assert models["same"]["quality"]["rows"] == 6
    assert 0 < models["bfloat16"]["quality"]["divergence"] < 1e-3
    assert models["bfloat16"]["bytes"] < 0.52 * models["model"]["bytes"]
    assert models["bfloat16"]["verdict"]["words"].startswith("bytes x 0.50")
    assert "bytes" not in models["same"]["verdict"]["words"]
    assert set(models["model"]["task"]) == {"exact_match", "exact_match_interval"}


def test_its_files(folder: Path) -> None:
    text = (folder / "card.md").read_text()
    assert all(f"| {name} |" in text for name in ("model", "bfloat16", "same"))
    assert (folder / "card.png").read_bytes().startswith(b"\x89PNG")
    metrics = json.loads((folder / "manifest.json").read_text())["metrics"]
    assert metrics["same.perplexity"] == metrics["model.perplexity"]
