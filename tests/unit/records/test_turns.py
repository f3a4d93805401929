"""Messages and turns of rows become conversations: whole, or refused with the place of every mistake."""

from __future__ import annotations

import json

import pytest

from scaleup.errors import ScaleupError
from scaleup.records.chats import Chat, is_answer
from scaleup.records.turns import SHAREGPT_ROLES, read_tools, read_turns, with_system

USER = {"role": "user", "content": "hi"}
CALL = {"type": "function", "id": "1", "function": {"name": "weather", "arguments": {"city": "X"}}}
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {}}}


def only(message):
    chat = read_turns("m", [message])
    return chat.messages[0]


def refusal(*messages):
    with pytest.raises(ScaleupError) as caught:
        read_turns("m", list(messages))
    return [f"{problem.where} {problem.what}" for problem in caught.value.problems]


def call_of(**changes):
    return {"role": "assistant", "content": None, "tool_calls": [{**CALL, "function": {**CALL["function"], **changes}}]}


def test_every_key_reaches_the_template_but_those_that_say_what_is_learned():
    message = {"role": "tool", "content": "x", "name": "n", "tool_call_id": "1", "odd": [1], "weight": 0}
    assert only(message) == {"role": "tool", "content": "x", "name": "n", "tool_call_id": "1", "odd": [1]}


def test_a_list_of_no_calls_is_no_key():
    assert only({**USER, "tool_calls": []}) == USER
    says = {"role": "assistant", "content": "Hi"}
    assert only({**says, "tool_calls": []}) == says


def test_nulls_that_parquet_fills_in_are_no_keys():
    assert only({**USER, "tool_calls": None, "name": None, "weight": None, "train": None}) == USER


def test_a_call_stands_instead_of_words():
    assert only({"role": "assistant", "content": None, "tool_calls": [CALL]}) == {
        "role": "assistant",
        "content": None,
        "tool_calls": [CALL],
    }
    assert only({"role": "assistant", "tool_calls": [CALL]})["content"] is None
    assert only({"role": "assistant", "content": "", "tool_calls": [CALL]})["content"] == ""


@pytest.mark.parametrize("arguments", [{"city": "X"}, '{"city": "X"}'])
@pytest.mark.parametrize("is_flat", [True, False])
def test_arguments_are_an_object(arguments, is_flat):
    function = {"name": "weather", "arguments": arguments}
    call = {**function, "id": "1"} if is_flat else {**CALL, "function": function}
    assert only({"role": "assistant", "content": None, "tool_calls": [call]})["tool_calls"] == [CALL]


@pytest.mark.parametrize("arguments", ["{not", "[1]", "1", "", [1], 3, '{"a": NaN}', '{"a": 1e999}'])
def test_arguments_that_are_no_object_are_refused_with_their_place(arguments):
    [line] = refusal(USER, call_of(arguments=arguments))
    assert line.startswith("m[1].tool_calls[0].function.arguments")


def test_what_is_no_call_is_refused():
    assert refusal(call_of(arguments=None, name=" ")) == [
        "m[0].tool_calls[0].function.name is no name of a function",
        "m[0].tool_calls[0].function.arguments is missing",
    ]
    assert refusal({**USER, "tool_calls": [CALL]}) == ["m[0].tool_calls is on a message of role user"]
    for calls, line in (
        ("f()", "m[0].tool_calls is no list of calls"),
        (["f()"], "m[0].tool_calls[0] is no call"),
        ([{"function": "f"}], "m[0].tool_calls[0].function is no function"),
        ([{"name": "f"}], "m[0].tool_calls[0].arguments is missing"),
    ):
        assert refusal({"role": "assistant", "content": "x", "tool_calls": calls}) == [line]


@pytest.mark.parametrize("key", ["reasoning_content", "reasoning", "thinking"])
def test_reasoning_may_be_all_that_is_said(key):
    message = only({"role": "assistant", "content": None, key: "so"})
    assert message == {"role": "assistant", "content": None, key: "so"} and is_answer(message)
    assert refusal({"role": "assistant", "content": "x", key: ["so"]}) == [f"m[0].{key} is no text"]


def test_content_that_is_no_text_is_refused():
    for content in (None, 1, {"text": "x"}):
        assert refusal({"role": "assistant", "content": content}) == ["m[0].content is no text"]
    assert refusal({"role": "tool"}) == ["m[0].content is no text"]


def test_parts_of_type_text_are_joined_and_others_refused_by_name():
    parts = [{"type": "text", "text": "a", "image_url": None}, {"type": "text", "text": " b"}]
    assert only({**USER, "content": parts}) == {"role": "user", "content": "a b"}
    bad = [
        {"type": "image_url", "image_url": {}},
        {"type": "text"},
        "x",
        {"type": "text", "text": "a", "cache_control": {}},
        {"type": "text", "text": "\ud800"},
    ]
    assert refusal({**USER, "content": bad}) == [
        "m[0].content[0] is a part of type 'image_url': only text is read",
        "m[0].content[1].text is no text",
        "m[0].content[2] is no part: only text is read",
        "m[0].content[3] has 'cache_control', which is lost when parts are joined",
        "m[0].content[4].text holds half of a surrogate pair",
    ]


def test_sharegpt_turns():
    for speaker, role in SHAREGPT_ROLES.items():
        if speaker != "function_call":
            assert only({"from": speaker, "value": "x", "weight": None}) == {"role": role, "content": "x"}
    call = {"from": "function_call", "value": json.dumps({"name": "weather", "arguments": '{"city": "X"}'})}
    [made] = only(call)["tool_calls"]
    assert made["function"] == CALL["function"] and only(call)["role"] == "assistant"
    assert refusal(
        {"from": "alien", "value": "x"}, {"from": [], "value": 1}, {"from": "function_call", "value": "f"}
    ) == [
        "m[0].from is 'alien'",
        "m[1].from is []",
        "m[1].value is no text",
        "m[2].value is no JSON of a function call",
    ]


@pytest.mark.parametrize("keys", [{"weight": 0}, {"weight": 0.0}, {"train": False}, {"weight": 0, "train": False}])
def test_answers_that_are_not_learned(keys):
    answer = {"role": "assistant", "content": "x"}
    assert read_turns("m", [USER, {**answer, **keys}, USER, {**answer, "weight": 1, "train": True}]) == Chat(
        [USER, answer, USER, answer], unlearned=frozenset({1})
    )
    assert read_turns("m", [{**USER, **keys}]) == Chat([USER], unlearned=frozenset({0})), "where all are learned"


def test_what_cannot_be_learned_is_refused():
    answer = {"role": "assistant", "content": "x"}
    for keys, line in (
        ({"weight": 2}, "m[0].weight is 2"),
        ({"weight": True}, "m[0].weight is True"),
        ({"weight": []}, "m[0].weight is []"),
        ({"train": "no"}, "m[0].train is 'no'"),
        ({"weight": 1, "train": False}, "m[0].train contradicts its weight"),
    ):
        assert refusal({**answer, **keys}) == [line]
    for key, value in (("weight", 1), ("train", True)):
        assert refusal({**USER, key: value})[0].startswith(f"m[0].{key} asks to learn a message of role user")


def test_half_a_surrogate_pair_is_found_wherever_it_is():
    assert refusal({**USER, "odd": [{"a": "\ud800"}]}, call_of(arguments={"\udc00": 1})) == [
        "m[0].odd[0].a holds half of a surrogate pair",
        "m[1].tool_calls[0].function.arguments holds half of a surrogate pair",
    ]


def test_values_nested_without_end_are_refused():
    value = []
    for _ in range(5000):
        value = [value]
    assert refusal({**USER, "odd": value}) == ["m[0] is nested too deeply"]


def test_tools_are_objects_or_json_text_of_them():
    assert read_tools(None, {}) is None
    for tools in (None, [], "", "[]", "null"):
        assert read_tools(None, {"tools": tools}) is None
    assert read_tools(None, {"tools": [TOOL]}) == [TOOL]
    assert read_tools("t", {"t": json.dumps([TOOL]), "tools": "hammer"}) == [TOOL]


@pytest.mark.parametrize("tools", ["hammer", "{", {}, 3, [1], ["x"], '{"a": 1}', 0])
def test_what_is_no_list_of_tools_is_refused(tools):
    with pytest.raises(ScaleupError) as caught:
        read_tools(None, {"tools": tools})
    assert caught.value.problems[0].what == "holds no list of tools"


def test_a_column_of_tools_that_is_named_must_be_there():
    with pytest.raises(ScaleupError) as caught:
        read_tools("t", {"tools": [TOOL]})
    assert caught.value.problems[0].what == "is no column of this row"


def test_a_turn_of_two_forms_is_refused():
    turn = {"from": "human", "value": "a", "content": "b", "role": "user"}
    what = "is set beside from and value: a message is {role, content} or {from, value}"
    assert refusal(turn) == [f"m[0].role {what}", f"m[0].content {what}"]


def test_the_form_before_tool_calls_is_refused_by_name():
    call = {"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": "{}"}}
    assert "m[0].function_call is the form before tool_calls, which is not read" in refusal(call)
    with pytest.raises(ScaleupError, match="use tool, for what a tool answers"):
        read_turns("m", [{"role": "function", "name": "f", "content": "1"}])


def test_a_column_of_the_systems_words_is_the_first_message():
    says = {"role": "assistant", "content": "Hi", "weight": 0}
    chat = with_system(read_turns("m", [USER, says]), {"system": "Be kind."})
    assert [message["role"] for message in chat.messages] == ["system", "user", "assistant"]
    assert chat.unlearned == {2}
    assert (
        with_system(chat, {"system": "Be kind."}) == with_system(chat, {"system": ""}) == with_system(chat, {}) == chat
    )
    for other in ("Be rude.", 3):
        with pytest.raises(ScaleupError, match="system"):
            with_system(chat, {"system": other})
