"""Rows become tokens before anything starts, and what is left out of them is told in a sentence."""

import pytest

from scaleup.artifacts.token_cache import TokenCache
from scaleup.children import PROGRESS
from scaleup.config.data import DataConfig
from scaleup.data.recipe import key_of
from scaleup.describe.tokens import _bar, token_notes
from scaleup.errors import ScaleupError
from scaleup.plan.facts import RowsRequest
from scaleup.train.reading import reading_of
from tests.unit.data import tiny
from tests.unit.data.test_sources import write


@pytest.fixture
def notes(tmp_path):
    def look(rows, name="llama", **keys):
        write(tmp_path / "a.jsonl", rows)
        formats = {} if {"chosen", "text", "messages"} & keys.keys() else {"prompt": "{p}", "completion": "{c}"}
        data = DataConfig.model_validate({"root": str(tmp_path), "train": "a.jsonl", **formats, **keys})
        request = RowsRequest(data=data, splits={}, tokens={"train": "completions"})
        found = list(token_notes(tiny.model_config(name), tiny.facts(name), request, "model"))
        return found, data

    return look


ROWS = [{"p": f"{at}", "c": " x" * (at + 1)} for at in range(10)]


def test_rows_that_are_too_long_are_counted(notes):
    [note], data = notes(ROWS, max_length=6, too_long="drop")
    assert note.startswith("data.train.0: ") and "of 10 rows are longer than data.max_length (6) and left out" in note
    assert note.endswith("-> raise it, or cut them with data.too_long: truncate")
    encoder = reading_of(tiny.facts("llama"), tiny.tokenizer("llama"), data).encoder
    key = key_of(data, data.train[0], "train", encoder)
    assert key in {entry.key for entry in TokenCache().entries()}, "where the run will look for them"


def test_one_row_is_one(notes):
    [note], _ = notes([ROWS[0], ROWS[9]], max_length=8, too_long="drop")
    assert "1 of 2 rows is longer than" in note


def test_rows_without_anything_to_learn_are_counted(notes):
    [note], _ = notes([*ROWS, {"p": "long " * 20, "c": "y"}], max_length=30)
    assert note == (
        "data.train.0: 1 of 11 rows has nothing to learn within data.max_length (30) and is left out -> raise it"
    )


def test_rows_that_are_too_long_are_refused_by_name(notes):
    with pytest.raises(ScaleupError) as raised:
        notes(ROWS, max_length=6, too_long="error")
    first, *_ = map(str, raised.value.problems)
    assert "a.jsonl:" in first and "'data.max_length' is 6, and the row has more tokens -> raise it" in first
    assert len(raised.value.problems) == 5


def test_nothing_is_said_where_nothing_is_left_out(notes):
    assert notes(ROWS, max_length=64, too_long="drop")[0] == []


@pytest.mark.parametrize(
    ("name", "keys"),
    [
        ("llama", {"text": "{p}", "label": "c"}),
        ("t5", {"text": "{p}"}),
        ("llama", {"chosen": "{p}", "rejected": "{c}"}),
    ],
)
def test_rows_of_another_kind_are_left_to_the_plan(notes, name, keys):
    assert notes(ROWS, name, **keys)[0] == []


def test_how_far_it_is():
    assert _bar(0, 10, 1.0) == ""
    assert _bar(500, 1000, 2.0) == " [##########..........] 500 of 1,000, 250 a second"
    assert _bar(1500, 1000, 2.0).startswith(" [####################] 1,500 of 1,000")
    assert _bar(500, None, 2.0) == " 500, 250 a second" and PROGRESS


def test_prompts_are_kept_too(tmp_path):
    write(tmp_path / "a.jsonl", [{"p": "a prompt"}])
    data = DataConfig.model_validate({"root": str(tmp_path), "train": "a.jsonl", "prompt": "{p}"})
    request = RowsRequest(data=data, splits={}, tokens={"train": "prompts"})
    before = len(TokenCache().entries())
    assert list(token_notes(tiny.model_config("llama"), tiny.facts("llama"), request, "model")) == []
    assert len(TokenCache().entries()) == before + 1


def test_pairs_are_kept_too(tmp_path):
    write(tmp_path / "a.jsonl", [{"chosen": "good " * at, "rejected": "bad"} for at in (1, 30)])
    keys = {"root": str(tmp_path), "train": "a.jsonl", "chosen": "{chosen}", "rejected": "{rejected}"}
    data = DataConfig.model_validate({**keys, "max_length": 40, "too_long": "drop"})
    tiny.classifier("llama")
    facts = tiny.facts("llama").model_copy(update={"task": "sequence_classification", "pooling": "last"})
    request = RowsRequest(data=data, splits={}, tokens={"train": "completions"}, pairs_template="{prompt}{response}")
    [note] = token_notes(tiny.model_config("llama"), facts, request, "model")
    assert "1 of 2 rows is longer than data.max_length (40) and left out" in note
