"""This module makes the parts of a row, such as its prompt: text by a template or, where a column that a template names
alone holds a list, messages."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from scaleup.errors import Problem, ScaleupError
from scaleup.records.chats import Chat
from scaleup.records.template import Template
from scaleup.records.turns import read_tools, read_turns, text_faults
from scaleup.records.values import messages_in

Templates = Mapping[str, Template]
Values = Mapping[str, Any]


def bare_column(template: Template) -> str | None:
    """Returns the column whose value is all that a template makes; None where it makes more of it."""
    alone = len(template.fields) == 1 and template.text == f"{{{template.fields[0]}}}"
    return template.columns[0] if alone else None


def is_list(template: Template, values: Values) -> bool:
    """Returns whether a row holds messages where the template stands."""
    return messages_in(values.get(bare_column(template) or "")) is not None


def rendered(templates: Templates, values: Values) -> dict[str, str]:
    """Returns the texts of a row. Raises ScaleupError for those that cannot be made, or are empty."""
    return together({name: partial(_text, name, template, values) for name, template in templates.items()})


def read_parts(templates: Templates, tools: str | None, values: Values) -> dict[str, Any]:
    """Returns each part of a row as a Chat of its messages, and `tools`, those beside them. A text is one message: of
    the user where it is the prompt, else of the assistant. Raises ScaleupError for all that cannot be read."""
    makes = {name: partial(_part, name, template, values) for name, template in templates.items()}
    return together({**makes, "tools": partial(read_tools, tools, values)})


def together(makes: Mapping[str, Callable[[], Any]]) -> dict[str, Any]:
    """Returns what each function makes of a row. Raises ScaleupError with the problems of all."""
    made: dict[str, Any] = {}
    problems: list[Problem] = []
    for name, make in makes.items():
        try:
            made[name] = make()
        except ScaleupError as error:
            problems += error.problems
    if problems:
        raise ScaleupError(list(dict.fromkeys(problems)))
    return made


def text_part(name: str, text: str) -> Chat:
    """Returns a text that stands beside messages as one of them."""
    return Chat([{"role": "user" if name == "prompt" else "assistant", "content": text}])


def _part(name: str, template: Template, values: Values) -> Chat:
    column = bare_column(template)
    if column is not None and (messages := messages_in(values.get(column))) is not None:
        return read_turns(column, messages)
    return text_part(name, _text(name, template, values))


def _text(name: str, template: Template, values: Values) -> str:
    text = template.render(values)
    if not text.strip():
        raise ScaleupError.of(name, "is empty", "mend or drop the row")
    if faults := text_faults(name, text):
        raise ScaleupError(faults)
    return text
