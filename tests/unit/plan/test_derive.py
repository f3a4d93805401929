"""What a config made of a finished run keeps of the run's own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from scaleup.config.schema import DataConfig, SourceConfig
from scaleup.plan.derive import own_split


@pytest.mark.parametrize(
    ("path", "kept"),
    [("imdb", "train"), ("rows.jsonl", None), ("saved", "train"), ("saved/train", "train"), ("plain", None)],
)
def test_training_rows_that_are_read_as_test_rows(tmp_path: Path, path: str, kept: str | None) -> None:
    """A hub's dataset, and a folder of several splits, would be read from another split; files have none."""
    (tmp_path / "rows.jsonl").write_text('{"text": "a"}\n')
    for folder in ("saved/train", "saved/test", "plain"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "rows.jsonl").write_text('{"text": "a"}\n')
    (tmp_path / "saved/dataset_dict.json").write_text(json.dumps({"splits": ["train", "test"]}))
    assert own_split(DataConfig(root=str(tmp_path)), SourceConfig(path=path), "train") == kept
