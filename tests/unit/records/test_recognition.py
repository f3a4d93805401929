"""Where no config says how a row becomes an example, the columns of the file do; or nobody does."""

from __future__ import annotations

import json

import pytest

from scaleup.config.data import DataConfig, LanguageData, PreferenceData
from scaleup.config.stages.dpo import ResponseData
from scaleup.records.check import check_data
from scaleup.records.examples import example_maker, format_problems, row_format
from scaleup.records.format_rules import with_formats

TURNS = [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "hello"}]
MESSAGES = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]
ALPACA = {"instruction": "a", "input": "", "output": "b"}


@pytest.fixture
def data_of(tmp_path):
    def make(*rows, **keys):
        (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return DataConfig.model_validate({"root": str(tmp_path), "train": "rows.jsonl", **keys})

    return make


def form_of(data):
    return row_format(data, data.train[0])


@pytest.mark.parametrize(
    ("row", "stated", "note"),
    [
        ({"messages": MESSAGES, "id": 1}, {"messages": "messages"}, "conversations (columns messages: role, content)"),
        (
            {"conversations": TURNS},
            {"messages": "conversations"},
            "conversations (columns conversations: from, value)",
        ),
        (
            {"prompt": "a", "completion": "b"},
            {"prompt": "{prompt}", "completion": "{completion}"},
            "prompts and completions (columns prompt, completion)",
        ),
        (
            {"chosen": "a", "rejected": "b"},
            {"chosen": "{chosen}", "rejected": "{rejected}"},
            "preferences (columns chosen, rejected)",
        ),
        (
            {"prompt": "", "chosen": "a", "rejected": "b"},
            {"prompt": "{prompt}", "chosen": "{chosen}", "rejected": "{rejected}"},
            "preferences (columns prompt, chosen, rejected)",
        ),
        (ALPACA, {"template": "alpaca"}, "instructions with answers (columns instruction, input, output)"),
        ({"text": "a", "id": 1}, {"text": "{text}"}, "plain text (columns text)"),
        ({"text": "a", "label": 0}, {"text": "{text}", "label": "label"}, "texts with a class (columns text, label)"),
    ],
)
def test_columns_tell_the_format_and_a_note_says_so(data_of, row, stated, note):
    data = data_of(row)
    assert form_of(data).model_dump(exclude_none=True) == {**stated, "columns": {}}
    assert format_problems(data, ["train"]) == []
    assert check_data(data, ["train"]).notes == [f"data.train.0: rows are read as {note}"]


def test_only_a_stage_that_learns_from_them_reads_judged_responses(data_of):
    data = data_of({"prompt": "a", "completion": "b", "label": True})
    plain = {"prompt": "{prompt}", "completion": "{completion}"}
    for kind, stated in ((DataConfig, plain), (LanguageData, plain), (ResponseData, {**plain, "label": "label"})):
        read = kind.model_validate(data.model_dump())
        assert form_of(read).model_dump(exclude_none=True) == {**stated, "columns": {}}
    assert check_data(read, ["train"]).notes == [
        "data.train.0: rows are read as unpaired preferences (columns prompt, completion, label)",
        "data.train.0: 1 responses are desirable, and 0 are not",
    ]


@pytest.mark.parametrize(
    "row",
    [
        {"question": "a", "answer": "b"},
        {"messages": "hi"},
        {"messages": [{"speaker": "me"}]},
        {"conversations": []},
        {"prompt": "a"},
        {"instruction": "a", "response": "b"},
    ],
)
def test_columns_of_no_format_or_several_are_refused_with_their_names(data_of, row):
    data = data_of(row, validation="rows.jsonl")
    [problem] = format_problems(data, ["train", "validation"])
    assert problem.where == "data"
    assert problem.what.endswith(f"(data.train.0 has the columns {', '.join(row)})")


def test_columns_of_several_formats_are_refused_with_these(data_of):
    row = {"messages": MESSAGES, "prompt": "a", "chosen": "b", "rejected": "c"}
    [problem] = format_problems(data_of(row), ["train"])
    fits = "they fit conversations (messages: role, content) and preferences (prompt, chosen, rejected))"
    assert problem.what.endswith(f"(data.train.0 has the columns {', '.join(row)}: {fits}")


ULTRAFEEDBACK = {"prompt": "hi", "chosen": MESSAGES, "rejected": MESSAGES, "messages": MESSAGES, "score_chosen": 8.5}


def test_of_several_formats_the_columns_tell_the_one_that_the_stage_learns_from(data_of):
    values = data_of(ULTRAFEEDBACK).model_dump()
    reward, language = PreferenceData(**values), LanguageData(**values)
    assert form_of(reward).chosen == "{chosen}" and form_of(reward).messages is None
    assert form_of(language).messages == "messages" and form_of(language).chosen is None
    assert check_data(reward, ["train"]).notes == [
        "data.train.0: rows are read as preferences (columns prompt, chosen, rejected)"
    ]
    both = data_of({**ULTRAFEEDBACK, "completion": "c"}).model_dump()
    assert "they fit conversations" in format_problems(LanguageData(**both), ["train"])[0].what
    assert form_of(PreferenceData(**data_of({"messages": MESSAGES}).model_dump())).messages == "messages"


def test_what_a_stage_reads_can_be_stated_for_another(data_of):
    reward = PreferenceData(**data_of(ULTRAFEEDBACK, tools="functions").model_dump())
    stated = DataConfig(**with_formats(reward).model_dump())
    assert form_of(stated) == form_of(reward) and form_of(stated).chosen == "{chosen}"
    own = data_of(ULTRAFEEDBACK, text="{prompt}")
    assert with_formats(own) == own


def test_alpacas_rows_may_repeat_themselves_as_text(data_of):
    assert form_of(data_of({**ALPACA, "text": "all of it"})).template == "alpaca"


def test_what_is_stated_comes_first(data_of):
    source = {"path": "rows.jsonl", "text": "{output}"}
    for data in (data_of(ALPACA, text="{output}"), data_of(ALPACA, train=source)):
        assert form_of(data).text == "{output}" and form_of(data).template is None
        assert check_data(data, ["train"]).notes == []


def test_tools_may_be_named_beside_what_the_columns_tell(data_of):
    data = data_of({"conversations": TURNS, "functions": [{"name": "f"}]}, tools="functions")
    form = form_of(data)
    assert (form.messages, form.tools) == ("conversations", "functions")
    chat = example_maker(data, data.train[0])({"conversations": TURNS, "functions": [{"name": "f"}]}, 0)
    assert chat.messages == MESSAGES and chat.tools == [{"name": "f"}]


def test_a_file_that_changes_is_looked_at_again(data_of):
    assert form_of(data_of({"text": "a"})).text == "{text}"
    assert form_of(data_of(ALPACA)).template == "alpaca"


def test_lines_that_are_none_are_passed_over(data_of, tmp_path):
    data = data_of({"text": "a"})
    (tmp_path / "rows.jsonl").write_text('{"text": \n{"text": "a"}\n')
    assert form_of(data).text == "{text}"


@pytest.mark.parametrize("path", ["imdb", "nothing.jsonl", "empty"])
def test_what_cannot_be_looked_at_is_not_recognised(data_of, tmp_path, path):
    (tmp_path / "empty").mkdir()
    data = data_of({"text": "a"}, train=path)
    [problem] = format_problems(data, ["train"])
    assert problem.what == "nothing says how a row becomes an example"


def test_each_source_is_looked_at(data_of, tmp_path):
    (tmp_path / "chats.jsonl").write_text(json.dumps({"messages": MESSAGES}))
    data = data_of(ALPACA, train=["rows.jsonl", "chats.jsonl"])
    assert [row_format(data, source).messages for source in data.train] == [None, "messages"]
    assert len(check_data(data, ["train"]).notes) == 2
