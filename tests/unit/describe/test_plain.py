"""Plain Transformers as an oracle: of tokens and labels, of a saved model's loss, and of answers beside padding."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from scaleup.config.load import load_mapping
from scaleup.describe.plain import NotDue, Plain
from scaleup.models.sources import materialize
from tests.small_runs import SFT

ROWS = [{"prompt": "ab" * number, "completion": " c" * number} for number in range(1, 8)]


def plain(folder: Path, model: str = "tiny-llama", **changes: Any) -> Plain:
    """A run that has left the model as it is, of rows of different lengths."""
    run = folder / "run"
    shutil.copytree(materialize(f"builtin:{model}", "model.path"), run / "model")
    for name in ("rows", "held"):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    data = {**SFT["data"], "root": str(folder), "validation": "held.jsonl", **changes}
    config = load_mapping({**SFT, "name": "x", "data": data}).config
    assert config is not None
    return Plain(config, run)


@pytest.mark.parametrize("model", ["tiny-llama", "tiny-t5", "tiny-bart"])
def test_our_own_tokens_and_answers_are_the_plain_ones(tmp_path: Path, model: str) -> None:
    made = plain(tmp_path, model)
    assert made.labels() == 0 and made.padding() == 0
    assert 4 < made.loss() < 8, "that of random weights: log 259"


def test_without_rows_or_spans_nothing_is_due(tmp_path: Path) -> None:
    made = plain(tmp_path, validation=None)
    with pytest.raises(NotDue, match="no held-out rows"):
        made.loss()
