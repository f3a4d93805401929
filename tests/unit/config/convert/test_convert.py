"""`scaleup convert`: which trainer a file is of, what is refused, and what a written config looks like."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from scaleup.config.convert import convert
from scaleup.config.convert.commented import WIDTH
from scaleup.config.convert.hugging_face import name_of
from scaleup.errors import ScaleupError
from tests.unit.config.convert.converted import draft_of, written

BARE = {"base_model": "m", "learning_rate": 1e-4}


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("- a\n", "holds no mapping of keys to values -> name a config of axolotl, llamafactory, torchtune, trl-sft"),
        ("stage: sft\nmodel: {path: m}\n", "is a config of scaleup already -> run it: scaleup run"),
        ("pipeline: {}\n", "is a config of scaleup already"),
        ("learning_rate: 1\n", "has no key by which configs of axolotl.* are known -> say which it is: --from"),
    ],
)
def test_a_file_that_is_of_no_trainer(text: str, why: str, tmp_path: Path) -> None:
    (tmp_path / "theirs.yaml").write_text(text)
    with pytest.raises(ScaleupError, match=why):
        convert(tmp_path / "theirs.yaml")


def test_a_trainer_that_is_not_known(tmp_path: Path) -> None:
    (tmp_path / "theirs.yaml").write_text(yaml.safe_dump(BARE))
    with pytest.raises(ScaleupError, match=r"--from: 'axolot' is no trainer .* -> did you mean 'axolotl'\?"):
        convert(tmp_path / "theirs.yaml", "axolot")


def test_a_file_is_never_overwritten(tmp_path: Path) -> None:
    (tmp_path / "theirs.yaml").write_text(yaml.safe_dump(BARE))
    ours = tmp_path / "ours.yaml"
    text = convert(tmp_path / "theirs.yaml", output=ours)
    assert ours.read_text() == text and f"scaleup run {ours}" in text
    with pytest.raises(ScaleupError, match=r"ours\.yaml: exists already -> name another"):
        convert(tmp_path / "theirs.yaml", output=ours)
    with pytest.raises(ScaleupError, match="cannot be written"):
        convert(tmp_path / "theirs.yaml", output=tmp_path / "nowhere/ours.yaml")


def test_the_number_of_processes_can_be_given(tmp_path: Path) -> None:
    text, config = written(BARE, tmp_path, num_processes=8)
    assert config.parallel.num_processes == 8 and "<-" not in text


def test_lines_are_short_and_templates_on_one(tmp_path: Path) -> None:
    own = {"field_instruction": "q", "field_output": "a", "format": "Question:\n{instruction}\nAnswer:\n"}
    long = {**BARE, "datasets": [{"path": "a.jsonl", "type": own}], "plugins": ["x" * 50, "y" * 50]}
    text, config = written(long, tmp_path)
    assert max(map(len, text.splitlines())) <= WIDTH
    assert 'prompt: "Question:\\n{q}\\nAnswer:\\n"' in text and config.data.prompt == "Question:\n{q}\nAnswer:\n"


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"zero_optimization": {"stage": 2}}, {"parallel.strategy": "zero2"}),
        ({"zero_optimization": {"stage": 0}}, {"parallel.strategy": "ddp"}),
        (
            {"zero_optimization": {"stage": 3, "offload_param": {"device": "cpu"}}},
            {"parallel.strategy": "zero3", "parallel.offload_parameters": True},
        ),
    ],
)
def test_a_deepspeed_file_is_read_where_it_is(config: Any, expected: Any, tmp_path: Path) -> None:
    (tmp_path / "ds.json").write_text(json.dumps(config))
    for given in (config, str(tmp_path / "ds.json")):
        values = draft_of("axolotl", {**BARE, "deepspeed": given}).values
        found = {key: value for key, value in values.items() if key.startswith("parallel.")}
        assert found == {"parallel.num_processes": 1, **expected}


def test_names_become_names_of_runs() -> None:
    assert [name_of(path) for path in ("./out/a b!/", "../..", "saves/x", "")] == [
        "a-b-",
        "converted",
        "x",
        "converted",
    ]
