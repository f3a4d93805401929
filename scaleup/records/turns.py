"""This module reads conversations from the values of a row: OpenAI's messages or ShareGPT's turns, their calls of
tools, and the tools beside them. No key is dropped silently: what is not known here goes on to the chat template."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, NoReturn

from scaleup.errors import Problem, ScaleupError
from scaleup.records.chats import REASONING_KEYS, ROLES, Chat, Message
from scaleup.records.rows import Unreadable
from scaleup.records.template import column_problem
from scaleup.records.values import list_in

SHAREGPT_ROLES = {
    "system": "system",
    **dict.fromkeys(("human", "user"), "user"),
    **dict.fromkeys(("gpt", "chatgpt", "bot", "assistant", "model", "function_call"), "assistant"),
    **dict.fromkeys(("tool", "observation", "function_response"), "tool"),
}
Problems = list[Problem]


def read_turns(where: str, value: Any) -> Chat:
    """Returns the messages of a list, without tools. Raises ScaleupError with all that is wrong with them; `where` is
    what the list is called there, which is a column or a place in one."""
    problems: Problems = []
    messages, unlearned = [], set()
    for at, raw in enumerate(list_in(where, value, wanted="a list of messages")):
        message, is_learned = _turn(f"{where}[{at}]", raw, problems)
        messages.append(message)
        if not is_learned:
            unlearned.add(at)
    if problems:
        raise ScaleupError(problems)
    return Chat(messages, unlearned=frozenset(unlearned))


def read_tools(column: str | None, values: Mapping[str, Any]) -> list[dict[str, Any]] | None:
    """Returns the tools of a row, objects or JSON text of them: those in `column`, which it must have, or in a column
    `tools` where it has one. Raises ScaleupError for what cannot be tools."""
    if column is not None and column not in values:
        raise ScaleupError(column_problem(column, values))
    name = column or "tools"
    tools = values.get(name)
    if isinstance(tools, str) and tools.strip():
        tools = _parsed(tools)
    if not tools and (tools is None or isinstance(tools, (str, list))):
        return None  # a template would show the headings of an empty list
    if not isinstance(tools, list) or not all(isinstance(tool, Mapping) for tool in tools):
        remedy = "make it a list of objects, or JSON text of one; `data.tools` may name another column"
        raise ScaleupError.of(name, "holds no list of tools", remedy)
    if problems := _faults(name, tools):
        raise ScaleupError(problems)
    return [dict(tool) for tool in tools]


def with_system(chat: Chat, values: Mapping[str, Any], column: str = "system") -> Chat:
    """Returns a conversation after what the column says, if the row has it, as the system's message.

    Raises ScaleupError where that is no text, or another than the conversation begins with."""
    system = values.get(column)
    if system is None or system == "":
        return chat
    if not isinstance(system, str):
        raise ScaleupError(column_problem(column, values))
    if faults := text_faults(column, system):
        raise ScaleupError(faults)
    if chat.messages and chat.messages[0]["role"] == "system":
        if chat.messages[0]["content"] == system:
            return chat
        what = "is another text than the system message that the conversation begins with"
        raise ScaleupError.of(column, what, "keep one of them")
    messages = [{"role": "system", "content": system}, *chat.messages]
    return replace(chat, messages=messages, unlearned=frozenset(turn + 1 for turn in chat.unlearned))


def text_faults(where: str, text: str) -> Problems:
    """Returns what is wrong with a text that need not say anything."""
    try:
        text.isascii() or text.encode()
    except UnicodeEncodeError:  # JSON can spell these; tokenizers then fail in the middle of the training
        return [Problem(where, "holds half of a surrogate pair", "mend or drop the row")]
    return []


def _turn(where: str, raw: Any, problems: Problems) -> tuple[Message, bool]:
    """Returns a message, and whether it may be learned."""
    if not isinstance(raw, Mapping):
        problems.append(Problem(where, "is no message", "write {role: ..., content: ...}"))
        return {}, True
    rest = {key: value for key, value in raw.items() if value is not None}  # Parquet fills in what a message lacks
    if rest.get("tool_calls") == []:  # and exporters a list of no calls
        del rest["tool_calls"]
    if "from" in rest and "value" in rest and (both := [key for key in ("role", "content") if key in rest]):
        what = "is set beside from and value: a message is {role, content} or {from, value}"
        problems += [Problem(f"{where}.{key}", what, "keep one of them") for key in both]
        return {}, True
    if "function_call" in rest:
        what = "is the form before tool_calls, which is not read"
        remedy = "write tool_calls: [{type: function, function: {name: ..., arguments: {...}}}]"
        problems.append(Problem(f"{where}.function_call", what, remedy))
        del rest["function_call"]
    if "role" not in rest and "from" in rest:
        role, content = _sharegpt_turn(where, rest, problems)
    else:
        role, content = rest.pop("role", None), rest.pop("content", None)
        if role not in ROLES:
            remedy = "use tool, for what a tool answers" if role == "function" else f"use one of {', '.join(ROLES)}"
            problems.append(Problem(f"{where}.role", f"is {role!r}", remedy))
        content = _content(f"{where}.content", content, rest, problems)
    is_learned = _is_learned(where, role, rest.pop("weight", None), rest.pop("train", None), problems)
    if "tool_calls" in rest:
        rest["tool_calls"] = _tool_calls(f"{where}.tool_calls", role, rest["tool_calls"], problems)
    for key in REASONING_KEYS:
        if not isinstance(rest.get(key, ""), str):
            problems.append(Problem(f"{where}.{key}", "is no text", "make it text"))
    if rest:
        problems += _faults(where, rest)
    return {"role": role, "content": content, **rest}, is_learned


def _sharegpt_turn(where: str, rest: dict[str, Any], problems: Problems) -> tuple[str | None, str | None]:
    """Returns role and content of a ShareGPT turn, and takes them from the `rest`; a function call, which is JSON
    text, becomes a call of the assistant there."""
    speaker, value = rest.pop("from"), rest.pop("value", None)
    role = SHAREGPT_ROLES.get(speaker) if isinstance(speaker, str) else None
    if role is None:
        problems.append(Problem(f"{where}.from", f"is {speaker!r}", f"use one of {', '.join(SHAREGPT_ROLES)}"))
    if speaker == "function_call":
        calls = _parsed(value) if isinstance(value, str) else value
        if not isinstance(calls, (list, Mapping)):
            what, remedy = "is no JSON of a function call", 'write {"name": ..., "arguments": {...}}'
            problems.append(Problem(f"{where}.value", what, remedy))
        else:
            rest["tool_calls"] = calls if isinstance(calls, list) else [calls]
        return role, None
    return role, _content(f"{where}.value", value, rest, problems)


def _content(where: str, content: Any, rest: Mapping[str, Any], problems: Problems) -> str | None:
    if isinstance(content, list):
        return _joined(where, content, problems)
    if content is None and any(rest.get(key) for key in ("tool_calls", *REASONING_KEYS)):
        return None
    if not isinstance(content, str):
        problems.append(Problem(where, "is no text", "make it text"))
        return None
    problems += text_faults(where, content)
    return content


def _joined(where: str, parts: list[Any], problems: Problems) -> str:
    """Returns the text of a message in parts."""
    texts = []
    for at, part in enumerate(parts):
        held = {key: value for key, value in part.items() if value is not None} if isinstance(part, Mapping) else {}
        text = held.get("text")
        if held.get("type") != "text":
            kind = f"is a part of type {held['type']!r}" if "type" in held else "is no part"
            problems.append(Problem(f"{where}[{at}]", f"{kind}: only text is read", "keep parts of type text"))
        elif not isinstance(text, str):
            problems.append(Problem(f"{where}[{at}].text", "is no text", "make it text"))
        elif more := sorted(map(str, held.keys() - {"type", "text"})):
            what = f"has {', '.join(map(repr, more))}, which is lost when parts are joined"
            problems.append(Problem(f"{where}[{at}]", what, "take it out"))
        else:
            problems += text_faults(f"{where}[{at}].text", text)
            texts.append(text)
    return "".join(texts)


def _is_learned(where: str, role: Any, weight: Any, train: Any, problems: Problems) -> bool:
    """Returns what a message says of whether it is learned; True where it says nothing."""
    said = {}
    if weight is not None:
        said["weight"] = bool(weight)
        if isinstance(weight, bool) or weight not in (0, 1):
            problems.append(Problem(f"{where}.weight", f"is {weight!r}", "use 0 or 1"))
    if train is not None:
        said["train"] = bool(train)
        if not isinstance(train, bool):
            problems.append(Problem(f"{where}.train", f"is {train!r}", "use true or false"))
    if len(set(said.values())) > 1:
        problems.append(Problem(f"{where}.train", "contradicts its weight", "keep one of them"))
    if role in ROLES and role != "assistant":
        for key in (key for key, is_learned in said.items() if is_learned):
            what = f"asks to learn a message of role {role}, which is not supported: the assistant's are learned"
            problems.append(Problem(f"{where}.{key}", what, "leave it out"))
    return all(said.values())


def _tool_calls(where: str, role: Any, calls: Any, problems: Problems) -> list[Any]:
    if not isinstance(calls, list):
        problems.append(Problem(where, "is no list of calls", "write [{type: function, function: {...}}]"))
        return []
    if calls and role in ROLES and role != "assistant":
        problems.append(Problem(where, f"is on a message of role {role}", "only the assistant calls tools"))
    return [_call(f"{where}[{at}]", call, problems) for at, call in enumerate(calls)]


def _call(where: str, call: Any, problems: Problems) -> Any:
    """Returns a call in OpenAI's form, its arguments as an object."""
    if not isinstance(call, Mapping):
        problems.append(Problem(where, "is no call", "write {type: function, function: {name: ..., arguments: {...}}}"))
        return call
    outer = {key: value for key, value in call.items() if value is not None}
    if "function" in outer:
        where, function = f"{where}.function", outer.pop("function")
    else:
        function = {key: outer.pop(key) for key in ("name", "arguments") if key in outer}
        outer = {"type": "function", **outer}
    if not isinstance(function, Mapping):
        problems.append(Problem(where, "is no function", "write {name: ..., arguments: {...}}"))
        return call
    function = {key: value for key, value in function.items() if value is not None}
    if not isinstance(name := function.get("name"), str) or not name.strip():
        problems.append(Problem(f"{where}.name", "is no name of a function", "give the tool's name"))
    arguments = function.get("arguments")
    function["arguments"] = _parsed(arguments) if isinstance(arguments, str) else arguments
    if not isinstance(function["arguments"], Mapping):
        what = "is missing" if arguments is None else "is no JSON object"
        problems.append(Problem(f"{where}.arguments", what, "write an object, or JSON text of one: {} if it has none"))
    return {**outer, "function": function}


def _parsed(text: str) -> Any:
    """Returns what JSON text holds; the text itself where it is none."""

    def refuse(constant: str) -> NoReturn:
        raise ValueError(constant)

    try:
        return json.loads(text, parse_constant=refuse)
    except (ValueError, RecursionError):
        return text


def _faults(where: str, value: Any) -> Problems:
    """Returns what no template could write of a value."""
    try:
        return list(_value_faults(where, value))
    except RecursionError:
        return [Problem(where, "is nested too deeply", "mend or drop the row")]


def _value_faults(where: str, value: Any) -> Iterator[Problem]:
    """Yields texts and numbers that are none."""
    if isinstance(value, str):
        yield from text_faults(where, value)
    elif isinstance(value, Mapping):
        for key, held in value.items():
            yield from text_faults(where, str(key))
            yield from _value_faults(f"{where}.{key}", held)
    elif isinstance(value, list):
        for at, held in enumerate(value):
            yield from _value_faults(f"{where}[{at}]", held)
    elif isinstance(value, float) and not math.isfinite(value):
        yield Problem(where, f"is {value}", "give a number, or text")
    elif isinstance(value, Unreadable):
        yield Problem(where, value.what, "mend or drop the row")
