"""This module reads rows in the form of Stanford Alpaca: an instruction, mostly with an input, and what to answer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from scaleup.errors import Problem, ScaleupError
from scaleup.records.chats import Chat, Message
from scaleup.records.template import column_problem
from scaleup.records.turns import text_faults

ALPACA = "alpaca"
NEEDED = ("instruction", "output")
FIELDS = ("instruction", "input", "output", "system", "history")
Values = Mapping[str, Any]


def read_alpaca(values: Values, columns: Mapping[str, str], with_answer: bool = True) -> Chat:
    """Returns a row as a conversation: the system's words, the turns before, the instruction with its input, the
    output; `columns` maps these fields to the row's. Raises ScaleupError with all that is wrong."""
    names = {field: columns.get(field, field) for field in FIELDS}
    problems: list[Problem] = []
    instruction = _text(names["instruction"], values, problems)
    more, system = (_optional_text(names[field], values, problems) for field in ("input", "system"))
    turns = _history(names["history"], values, problems)
    output = _text(names["output"], values, problems) if with_answer else ""
    if problems:
        raise ScaleupError(problems)
    question = f"{instruction}\n\n{more}" if more.strip() else instruction
    messages = [*turns, _message("user", question)]
    if system.strip():
        messages.insert(0, _message("system", system))
    if with_answer:
        messages.append(_message("assistant", output))
    return Chat(messages)


def _message(role: str, content: str) -> Message:
    return {"role": role, "content": content}


def _text(column: str, values: Values, problems: list[Problem]) -> str:
    text = values.get(column)
    if not isinstance(text, str):
        problems.append(column_problem(column, values))
        return ""
    problems += text_faults(column, text) if text.strip() else [Problem(column, "is empty", "mend or drop the row")]
    return text


def _optional_text(column: str, values: Values, problems: list[Problem]) -> str:
    text = values.get(column)
    return "" if text is None or text == "" else _text(column, values, problems)


def _history(column: str, values: Values, problems: list[Problem]) -> list[Message]:
    history = values.get(column) or []
    if not isinstance(history, list):
        problems.append(column_problem(column, values, wanted="a list of turns"))
        return []
    messages = []
    for at, turn in enumerate(history):
        if not (isinstance(turn, list) and len(turn) == 2 and all(isinstance(text, str) for text in turn)):
            problems.append(Problem(f"{column}[{at}]", "is no turn", "write [what was asked, what was answered]"))
            continue
        problems += [fault for text in turn for fault in text_faults(f"{column}[{at}]", text)]
        messages += [_message(role, text) for role, text in zip(("user", "assistant"), turn, strict=True)]
    return messages
