"""Prompts that are kept in a file are those that rows give: ids, text, columns and conversation."""

from datetime import date

import pyarrow
import pytest
from pyarrow import parquet

from scaleup.data.prompt_rows import NotKept, PromptEncoder
from scaleup.data.prompts import KeptPrompts, PromptOrder, prompts_of, read_prompts
from scaleup.data.sources import read_prompt_rows
from tests.unit.data.test_sources import data_config, encoder, write

CHAT = [{"role": "user", "content": "How are you?"}, {"role": "assistant", "content": "Fine."}]
NESTED = {"a": [1, None, True, 0.1]}
ROWS = [{"p": f"prompt {at} " + "long " * at, "c": "x", "number": at / 3, "nested": NESTED} for at in range(9)]
OTHER = {"prompt": None, "completion": None}


def in_memory(data, encode):
    rows = read_prompt_rows(data, data.train[0], "train")
    return prompts_of(encode, [prompt for prompt, _ in rows], [values for _, values in rows])


@pytest.mark.parametrize(
    ("rows", "keys"),
    [
        (ROWS, {"max_length": 12}),
        ([{"messages": CHAT, "é": "\ud800"}] * 3, {**OTHER, "messages": "messages"}),
        ([{"text": f"row {at}", "label": "good"} for at in range(7)], {**OTHER, "template": "sentiment"}),
    ],
    ids=["texts", "chats", "phrasings"],
)
def test_kept_prompts_are_those_of_the_rows(tmp_path, rows, keys):
    write(tmp_path / "a.jsonl", rows)
    data = data_config(root=str(tmp_path), train="a.jsonl", **keys)
    encode = encoder(data)
    [kept] = read_prompts(data, "train", encode)
    assert isinstance(kept, KeptPrompts) and list(kept) == in_memory(data, encode) and kept[1:3] == list(kept)[1:3]
    assert PromptOrder([kept], [1.0], 0, True).drawn(4, 4) == PromptOrder([list(kept)], [1.0], 0, True).drawn(4, 4)


@pytest.mark.parametrize("value", [float("nan"), {1: "a key that is no text"}, (1, 2), object()])
def test_rows_that_no_file_gives_back_are_not_kept(tmp_path, value):
    data = data_config(root=str(tmp_path), train="a.jsonl")
    with pytest.raises(NotKept):
        PromptEncoder(encoder(data)).maker(data.train[0])({"p": "x", "value": value}, 0)


def test_they_stay_in_memory(tmp_path):
    """A column of a Parquet file may hold what JSON has no word for."""
    day = date(2026, 11, 29)
    parquet.write_table(pyarrow.table({"p": ["x", "y"], "day": [day, day]}), tmp_path / "a.parquet")
    data = data_config(root=str(tmp_path), train="a.parquet")
    [kept] = read_prompts(data, "train", encoder(data))
    assert isinstance(kept, list) and [prompt.columns for prompt in kept] == [{"p": p, "day": day} for p in "xy"]
