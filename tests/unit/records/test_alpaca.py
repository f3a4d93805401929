"""Rows in Alpaca's form become conversations."""

from __future__ import annotations

import pytest

from scaleup.config.data import DataConfig
from scaleup.errors import ScaleupError
from scaleup.records.chats import Chat
from scaleup.records.examples import example_maker, format_problems, prompt_maker

ROW = {"instruction": "Add.", "output": "3"}


def made(values, make=example_maker, **keys):
    data = DataConfig.model_validate({"train": "x.jsonl", "template": "alpaca", **keys})
    assert format_problems(data, ["train"]) == []
    return make(data, data.train[0])(values, 0)


def turns(*texts, system=None):
    roles = ["user", "assistant"] * len(texts)
    said = [{"role": role, "content": text} for role, text in zip(roles, texts, strict=False)]
    return Chat(([{"role": "system", "content": system}] if system else []) + said)


@pytest.mark.parametrize("nothing", [{}, {"input": None}, {"input": ""}, {"system": "", "history": []}])
def test_an_instruction_alone(nothing):
    assert made({**ROW, **nothing}) == turns("Add.", "3")


def test_an_instruction_with_all_that_may_stand_before_it():
    row = {**ROW, "input": "1 and 2", "system": "Be brief.", "history": [["Hi", "Hello"]]}
    assert made(row) == turns("Hi", "Hello", "Add.\n\n1 and 2", "3", system="Be brief.")


def test_prompts_need_no_output():
    row = {"instruction": "Add.", "history": [["Hi", "Hello"]]}
    assert made(row, prompt_maker) == turns("Hi", "Hello", "Add.")


def test_columns_may_have_other_names_and_tools():
    row = {"question": "Add.", "answer": "3", "tools": [{"name": "f"}]}
    chat = made(row, columns={"instruction": "question", "output": "answer"})
    assert chat == Chat(turns("Add.", "3").messages, [{"name": "f"}])


def test_rows_that_cannot_be_used_name_all_their_faults():
    row = {"instruction": " ", "input": 3, "output": "\ud800", "history": [["a"], ["b", "c"]], "tools": "hammer"}
    with pytest.raises(ScaleupError) as caught:
        made(row)
    assert [problem.where for problem in caught.value.problems] == [
        "instruction",
        "input",
        "history[0]",
        "output",
        "tools",
    ]
