"""What a config made of a finished run keeps of the run's own."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from scaleup.config.data import DataConfig, SourceConfig
from scaleup.config.load import Loaded, dump, load_mapping
from scaleup.config.stages.evaluate import EvaluateConfig
from scaleup.errors import ScaleupError
from scaleup.plan.derive import evaluation_config, export_config, generation_config, own_split
from scaleup.plan.stages import planner_of
from scaleup.records.format_rules import row_format
from tests.unit.plan.conftest import RAW

ULTRAFEEDBACK = {
    "prompt": "hi",
    **{key: [{"role": "assistant", "content": "yes"}] for key in ("messages", "chosen", "rejected")},
}


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


@pytest.mark.parametrize("derived", [evaluation_config, generation_config, export_config])
def test_the_chat_template_is_the_one_that_was_saved(tmp_path: Path, derived: Callable[..., Loaded]) -> None:
    """The file that the run was made with may have changed, or be gone."""
    raw = {**RAW, "data": {**RAW["data"], "chat_template": str(tmp_path / "gone.jinja")}}
    config = load_mapping(raw).config
    assert config is not None
    (tmp_path / "model").mkdir()
    (tmp_path / "model/chat_template.jinja").write_text("{{ messages }}")
    (tmp_path / "config.yaml").write_text(dump(config), encoding="utf-8")
    (tmp_path / "manifest.json").write_text("{}")
    made = derived(tmp_path, []).config
    assert made is not None
    assert made.data.chat_template == str(tmp_path / "model/chat_template.jinja")


@pytest.mark.parametrize("derived", [evaluation_config, generation_config, export_config])
def test_new_tokens_are_in_the_tokenizer_that_was_saved(tmp_path: Path, derived: Callable[..., Loaded]) -> None:
    """They are not added twice; nor to the model that the run began with, which still needs the config's tokenizer."""
    model = {**RAW["model"], "tokenizer": "builtin:tiny-llama", "new_tokens": ["<tool>"]}
    config = load_mapping({**RAW, "model": model}).config
    assert config is not None
    (tmp_path / "model").mkdir()
    (tmp_path / "config.yaml").write_text(dump(config), encoding="utf-8")
    (tmp_path / "manifest.json").write_text("{}")
    made = derived(tmp_path, []).config
    assert made is not None
    assert (made.model.path, made.model.tokenizer, made.model.new_tokens) == (str(tmp_path), None, [])
    if isinstance(made, EvaluateConfig):
        assert made.baseline is not None
        assert (made.baseline.tokenizer, made.baseline.new_tokens) == ("builtin:tiny-llama", [])


def test_a_reward_models_rows_are_read_as_it_read_them(tmp_path: Path) -> None:
    """Their columns fit conversations too, and stage evaluate alone does not tell which are meant."""
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps(ULTRAFEEDBACK))
    config = load_mapping({**RAW, "stage": "reward", "data": {"train": str(rows), "test": str(rows)}}).config
    assert config is not None
    (tmp_path / "config.yaml").write_text(dump(config), encoding="utf-8")
    (tmp_path / "manifest.json").write_text("{}")
    for overrides, chosen in (([], "{chosen}"), (["data.messages=messages"], None)):
        made = evaluation_config(tmp_path, overrides).config
        assert made is not None and made.data.test is not None
        assert row_format(made.data, made.data.test[0]).chosen == chosen


@pytest.mark.parametrize("stage", ["sft", "distill"])
def test_a_teacher_reads_by_its_own_template(tmp_path: Path, stage: str) -> None:
    """Not by the run's, as the base does that a run began with; the planner has its rows tried in that way."""
    more = {"teacher": {"path": "builtin:tiny-llama"}} if stage == "distill" else {}
    config = load_mapping({**RAW, **more, "stage": stage}).config
    assert config is not None
    (tmp_path / "config.yaml").write_text(dump(config), encoding="utf-8")
    (tmp_path / "manifest.json").write_text("{}")
    chats = ["data.test=rows.jsonl", "data.text=null", "data.messages=messages"]
    made: Any = evaluation_config(tmp_path, chats).config
    assert made.baseline_chat_template == ("own" if stage == "distill" else "data")
    readers = planner_of(made).readers(made)
    assert [(where, rows.by_own_template) for where, rows in readers.items()] == [
        ("model", False),
        ("baseline", stage == "distill"),
    ]


def test_prompts_that_are_no_text_in_the_locale_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ScaleupError, match=r"'a.udcc3.udca9' has bytes that are no text in this locale") as refused:
        generation_config(tmp_path, [], ["fine", "a\udcc3\udca9"])
    assert [problem.where for problem in refused.value.problems] == ["--prompt"]
