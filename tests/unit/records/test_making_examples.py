"""Rows to examples, and the mistakes in a config's row formats."""

import pytest

from scaleup.config.data import DataConfig
from scaleup.errors import ScaleupError
from scaleup.records.chats import Chat
from scaleup.records.examples import (
    PlainText,
    PromptCompletion,
    example_maker,
    format_problems,
    prompt_maker,
    row_format,
    row_problem,
)
from scaleup.records.instructions import INSTRUCTIONS

USER = {"role": "user", "content": "hi"}
ANSWER = {"role": "assistant", "content": "hello"}
PAIR = {"prompt": "{a}:", "completion": " {b}"}


def config(train="a.jsonl", **keys):
    return DataConfig.model_validate({"train": train, **keys})


def maker(make=example_maker, **keys):
    data = config(**keys)
    return make(data, data.train[0])


@pytest.mark.parametrize(
    ("keys", "values", "example"),
    [
        (PAIR, {"a": "x", "b": 1}, PromptCompletion("x:", " 1")),
        ({**PAIR, "columns": {"b": "c"}}, {"a": "x", "c": "y"}, PromptCompletion("x:", " y")),
        ({"text": "{a}!"}, {"a": "x"}, PlainText("x!")),
        ({"messages": "m"}, {"m": [USER, {**ANSWER, "name": None}]}, Chat([USER, ANSWER])),
    ],
)
def test_examples(keys, values, example):
    assert maker(**keys)(values, 0) == example


def test_a_named_template_speaks_in_all_its_phrasings():
    make = maker(template="sentiment", columns={"text": "review"})
    examples = [make({"review": "fine", "label": "good"}, index) for index in range(100)]
    assert len(set(examples)) == len(INSTRUCTIONS["sentiment"].phrasings)
    assert all("fine" in example.prompt and example.completion.strip() == "good" for example in examples)
    assert examples == [make({"review": "fine", "label": "good"}, index) for index in range(100)]


@pytest.mark.parametrize(
    ("keys", "values", "where"),
    [
        (PAIR, {"a": None}, ["a", "b"]),
        (PAIR, {"a": "x", "b": " \n"}, ["completion"]),
        ({**PAIR, "prompt": "{a}"}, {"a": "", "b": None}, ["prompt", "b"]),
        (PAIR, {"a": "\ud800", "b": "y"}, ["prompt"]),
        ({"text": "{a}"}, {"a": " "}, ["text"]),
        ({"messages": "m"}, {"n": []}, ["m"]),
        ({"messages": "m"}, {"m": None}, ["m"]),
        ({"messages": "m"}, {"m": "[]"}, ["m"]),
        ({"messages": "m"}, {"m": []}, ["m"]),
        ({"messages": "m"}, {"m": [USER]}, ["m"]),
        ({"messages": "m"}, {"m": [USER, {**ANSWER, "content": " "}]}, ["m"]),
        (
            {"messages": "m"},
            {"m": ["hi", {"role": "bot", "content": 1}, ANSWER]},
            ["m[0]", "m[1].role", "m[1].content"],
        ),
        ({"messages": "m"}, {"m": [USER, {"role": "assistant", "content": "\udc00"}]}, ["m[1].content"]),
        ({"messages": "m"}, {"m": [{"role": [], "content": "x"}, ANSWER]}, ["m[0].role"]),
    ],
)
def test_rows_that_cannot_be_used_name_all_their_faults(keys, values, where):
    with pytest.raises(ScaleupError) as raised:
        maker(**keys)(values, 0)
    assert [problem.where for problem in raised.value.problems] == where


CALLING = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f", "arguments": {}}}]}
TOOLS = [{"name": "f"}]
SIDES = {"prompt": "{p}", "completion": "{c}"}


def test_chats_are_whole():
    messages = [USER, CALLING, {"role": "tool", "content": "x"}, {**ANSWER, "weight": 0}]
    chat = maker(messages="m")({"m": messages, "tools": TOOLS}, 0)
    assert chat == Chat([*messages[:3], ANSWER], TOOLS, frozenset({3}))
    assert maker(messages="m", tools="t")({"m": [USER, CALLING], "t": "[]"}, 0) == Chat([USER, CALLING])
    assert maker(prompt_maker, messages="m")({"m": messages, "tools": TOOLS}, 0) == Chat(messages[:3], TOOLS)


def test_a_chat_of_which_nothing_is_learned_is_refused():
    with pytest.raises(ScaleupError) as raised:
        maker(messages="m")({"m": [USER, {**ANSWER, "train": False}]}, 0)
    assert "no answer that is learned" in str(raised.value)


@pytest.mark.parametrize(
    ("row", "chat"),
    [
        ({"p": [USER], "c": [ANSWER]}, Chat([USER, ANSWER])),
        ({"p": "hi", "c": [ANSWER]}, Chat([USER, ANSWER])),
        ({"p": [USER], "c": "hello", "tools": TOOLS}, Chat([USER, ANSWER], TOOLS)),
        ({"p": [USER, ANSWER, USER], "c": [ANSWER]}, Chat([USER, ANSWER, USER, ANSWER], given=frozenset({1}))),
        (
            {"p": [USER], "c": [{**ANSWER, "weight": 0}, USER, ANSWER]},
            Chat([USER, ANSWER, USER, ANSWER], unlearned=frozenset({1})),
        ),
    ],
)
def test_a_prompt_and_a_completion_may_be_messages(row, chat):
    assert maker(**SIDES)(row, 0) == chat


def test_a_prompt_of_messages_is_taken_whole():
    assert maker(prompt_maker, **SIDES)({"p": [USER, ANSWER, USER], "tools": TOOLS}, 0) == Chat(
        [USER, ANSWER, USER], TOOLS
    )
    assert maker(prompt_maker, **SIDES)({"p": "hi"}, 0) == "hi"


@pytest.mark.parametrize(
    ("row", "where"),
    [
        ({"p": [], "c": [ANSWER]}, ["prompt"]),
        ({"p": [USER], "c": [USER, ANSWER]}, ["completion"]),
        ({"p": [USER], "c": []}, ["completion"]),
        ({"p": [USER], "c": [{**ANSWER, "content": " "}]}, ["completion"]),
        ({"p": [{"role": "user"}], "c": [1], "tools": "x"}, ["p[0].content", "c[0]", "tools"]),
        ({"p": [USER]}, ["c"]),
    ],
)
def test_messages_that_are_no_prompt_or_no_completion_are_refused(row, where):
    with pytest.raises(ScaleupError) as raised:
        maker(**SIDES)(row, 0)
    assert [problem.where for problem in raised.value.problems] == where


def test_messages_in_the_middle_of_a_text_are_refused():
    with pytest.raises(ScaleupError):
        maker(prompt="Q: {p}", completion="{c}")({"p": [USER], "c": "x"}, 0)


def test_a_row_problem_says_all_in_one_line():
    with pytest.raises(ScaleupError) as raised:
        maker(**PAIR)({"a": None, "B": "x"}, 0)
    problem = row_problem("a.jsonl:3", raised.value)
    assert str(problem).startswith("a.jsonl:3: 'a' is null; 'b' is no column of this row -> ")


@pytest.mark.parametrize(
    ("keys", "values", "prompt"),
    [
        ({"prompt": "{a}:"}, {"a": "x"}, "x:"),
        (PAIR, {"a": "x"}, "x:"),
        ({"messages": "m"}, {"m": [USER, ANSWER, USER, ANSWER]}, Chat([USER, ANSWER, USER])),
        ({"messages": "m"}, {"m": [USER]}, Chat([USER])),
    ],
)
def test_prompts_need_no_completion(keys, values, prompt):
    assert maker(prompt_maker, **keys)(values, 0) == prompt


@pytest.mark.parametrize("messages", [[], [ANSWER], [{**USER, "content": ""}, ANSWER]])
def test_a_chat_without_a_question_gives_no_prompt(messages):
    with pytest.raises(ScaleupError):
        maker(prompt_maker, messages="m")({"m": messages}, 0)


def test_a_prompt_is_that_of_the_example():
    data = config(template="summarize")
    values = {"document": "d", "summary": "s"}
    example, prompt = (make(data, data.train[0]) for make in (example_maker, prompt_maker))
    assert [example(values, index).prompt for index in range(20)] == [prompt(values, index) for index in range(20)]


def test_a_source_states_its_own_format_or_takes_that_of_the_data():
    data = config(
        train=[{"path": "a", "columns": {"a": "x"}}, {"path": "b", "text": "{t}"}], **PAIR, columns={"a": "y", "b": "z"}
    )
    first, second = (row_format(data, source) for source in data.train)
    assert (first.prompt, first.completion, first.columns) == ("{a}:", " {b}", {"a": "x", "b": "z"})
    assert (second.prompt, second.completion, second.text) == (None, None, "{t}")


def with_sources(*sources, **keys):
    return config(train=[{"path": str(place), **source} for place, source in enumerate(sources)], **keys)


MISTAKES = {
    "no format": (config(), ["data"]),
    "no format, two sources": (with_sources({}, {}), ["data"]),
    "two formats": (config(prompt="{a}", completion="{b}", text="{a}"), ["data.text"]),
    "template and prompt": (config(template="sentiment", prompt="{a}"), ["data.template"]),
    "no completion": (config(prompt="{a}"), ["data.prompt"]),
    "no prompt": (config(completion="{a}"), ["data.completion"]),
    "unknown template": (config(template="summarise", columns={"x": "y"}), ["data.template"]),
    "malformed": (config(prompt="{a", completion="{b!r}"), ["data.prompt", "data.completion"]),
    "a column's name for a template": (config(text="text"), ["data.text"]),
    "no such field": (config(**PAIR, columns={"c": "x"}), ["data.columns.c"]),
    "no such field of a named one": (config(template="sentiment", columns={"txt": "x"}), ["data.columns.txt"]),
    "a source's own": (
        with_sources({}, {"template": "nli"}, {"text": "{"}, text="{t}"),
        ["data.train.1.template", "data.train.2.text"],
    ),
    "a source's columns": (with_sources({"columns": {"u": "x"}}, text="{t}"), ["data.train.0.columns.u"]),
    "columns of one source only": (with_sources({}, {"text": "{t}"}, **PAIR, columns={"t": "x", "a": "y"}), []),
    "good": (config(template="translate", columns={"source": "en"}), []),
    "a constant prompt": (config(prompt="Go on:", completion="{a}"), []),
    "tools of plain text": (config(text="{a}", tools="t"), ["data.tools"]),
    "tools of a named template": (config(template="sentiment", tools="t"), ["data.tools"]),
    "tools of Alpaca's form": (config(template="alpaca", tools="t"), []),
    "tools of another source": (with_sources({"text": "{a}"}, {}, messages="m", tools="t"), []),
    "nothing to read": (DataConfig(), []),
}


@pytest.mark.parametrize(("data", "where"), MISTAKES.values(), ids=MISTAKES)
def test_format_problems(data, where):
    assert [problem.where for problem in format_problems(data, ["train", "validation", "test"])] == where


def test_format_problems_name_what_was_meant():
    (problem,) = format_problems(config(template="summarise"), ["train"])
    assert problem.remedy == "did you mean 'summarize'?"
    (problem,) = format_problems(config(template="sentiment", columns={"txt": "x"}), ["train"])
    assert problem.remedy == "did you mean 'text'?"


def test_only_the_splits_asked_for_are_checked():
    data = DataConfig.model_validate({"train": "a.jsonl", "test": {"path": "b.jsonl", "text": "{t}"}})
    assert format_problems(data, ["test"]) == []
    assert format_problems(data, ["train"]) != []


def test_generation_needs_prompts_and_no_completions():
    assert format_problems(config(prompt="{a}"), ["train"], prompts_only=["train"]) == []
    (problem,) = format_problems(config(text="{a}"), ["train"], prompts_only=["train"])
    assert problem.where == "data.text"


@pytest.mark.parametrize("make", [example_maker, prompt_maker])
def test_no_maker_of_a_mistaken_format(make):
    with pytest.raises(ScaleupError):
        maker(make, template="summarise")


@pytest.mark.parametrize("everything", [{}, {"train_on": "all"}, {"completion_only_loss": False}])
def test_messages_that_are_not_learned_are_of_any_role(everything):
    asks, says = {"role": "user", "content": "a", "train": False}, {"role": "assistant", "content": "b", "weight": 0}
    rows = [
        ({"messages": "m"}, {"m": [asks, says, USER, {**says, "weight": 1}]}, {}),
        ({"prompt": "{p}", "completion": "{c}"}, {"p": [asks], "c": [says, USER, {**says, "weight": 1}]}, {}),
        ({"prompt": "{p}", "completion": "{c}"}, {"p": [asks, says, USER], "c": [ANSWER]}, {"given": frozenset({1})}),
    ]
    for keys, values, more in rows:
        chat = maker(**keys, **everything)(values, 0)
        assert (chat.unlearned, chat.given, chat.answers) == ({0, 1}, more.get("given", frozenset()), [3])


def test_sharegpts_system_column_is_read():
    turns = [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]
    chat = maker(messages="m")({"m": turns, "system": "Be kind."}, 0)
    assert chat.messages[0] == {"role": "system", "content": "Be kind."}
