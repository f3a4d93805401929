"""Examples made of rows: which format a source's rows have, whether the config states it properly, and the making
itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from scaleup.config.schema import DataConfig, RowFormat, SourceConfig
from scaleup.errors import Problem, ScaleupError
from scaleup.records.chats import Chat, Message
from scaleup.records.format_rules import format_mistakes, format_problems, row_format
from scaleup.records.instructions import INSTRUCTIONS, phrasing_of
from scaleup.records.template import Template, column_problem

__all__ = [
    "Example",
    "Labelled",
    "Opening",
    "PlainText",
    "PromptCompletion",
    "example_maker",
    "format_problems",
    "labelled_maker",
    "prompt_maker",
    "rendered",
    "row_format",
    "row_problem",
    "valid_format",
]

ROLES = ("system", "user", "assistant", "tool")


@dataclass(frozen=True)
class PromptCompletion:
    """Holds a prompt and what should follow it."""

    prompt: str
    completion: str


@dataclass(frozen=True)
class PlainText:
    """Holds text for plain language modelling."""

    text: str


@dataclass(frozen=True)
class Labelled:
    """Holds a text and its class, by name or by number."""

    text: str
    label: str | int


@dataclass(frozen=True)
class Opening:
    """Holds a prompt, text or messages, without an answer."""

    prompt: str | Chat


Example = PromptCompletion | Chat | PlainText
Values = Mapping[str, Any]


def example_maker(data: DataConfig, source: SourceConfig) -> Callable[[Values, int], Example]:
    """Returns a function from a row's values and its index in the source to an example. It raises ScaleupError for a
    row that it cannot use: add the row's place to that with `row_problem`."""
    form = valid_format(data, source)
    if form.messages is not None:
        column = form.messages
        return lambda values, index: Chat(_messages(column, values))
    if form.text is not None:
        text = {"text": Template(form.text, form.columns)}
        return lambda values, index: PlainText(**rendered(text, values))
    pairs = [
        {"prompt": Template(prompt, form.columns), "completion": Template(completion, form.columns)}
        for prompt, completion in _phrasings(form)
    ]
    return lambda values, index: PromptCompletion(**rendered(_chosen(pairs, index), values))


def labelled_maker(data: DataConfig, source: SourceConfig) -> Callable[[Values, int], Labelled]:
    """Returns a function like `example_maker`'s, for rows of `text` and `label`."""
    form = valid_format(data, source)
    assert form.text is not None and form.label is not None, "the format has been looked at"
    text, column = {"text": Template(form.text, form.columns)}, form.label
    return lambda values, index: Labelled(**rendered(text, values), label=_label(column, values))


def prompt_maker(data: DataConfig, source: SourceConfig) -> Callable[[Values, int], str | Chat]:
    """Returns a function that makes only the prompt, and needs no completion. Of a chat it takes the messages before
    the assistant's last one."""
    form = valid_format(data, source, prompts_only=True)
    if form.messages is not None:
        column = form.messages
        return lambda values, index: _opening(column, values)
    prompts = [{"prompt": Template(prompt, form.columns)} for prompt, _ in _phrasings(form)]
    return lambda values, index: rendered(_chosen(prompts, index), values)["prompt"]


def row_problem(where: str, error: ScaleupError) -> Problem:
    """Joins all problems of the row at `where` into one."""
    what = "; ".join(f"'{problem.where}' {problem.what}" for problem in error.problems)
    return Problem(where, what, "; ".join(dict.fromkeys(p.remedy for p in error.problems if p.remedy)))


def valid_format(data: DataConfig, source: SourceConfig, prompts_only: bool = False) -> RowFormat:
    """Returns the format of a source's rows. Raises ScaleupError with the mistakes in it."""
    form = row_format(data, source)
    if mistakes := format_mistakes(form, "data", prompts_only):
        raise ScaleupError(mistakes)
    return form


def _phrasings(form: RowFormat) -> Sequence[tuple[str, str]]:
    if form.template is not None:
        return INSTRUCTIONS[form.template].phrasings
    return [(form.prompt or "", form.completion or "")]


def _chosen(phrasings: list[dict[str, Template]], index: int) -> dict[str, Template]:
    return phrasings[phrasing_of(index, len(phrasings))] if len(phrasings) > 1 else phrasings[0]


def rendered(templates: dict[str, Template], values: Values) -> dict[str, str]:
    """Returns the texts of a row. Raises ScaleupError for those that cannot be made, or are empty."""
    texts: dict[str, str] = {}
    problems: list[Problem] = []
    for name, template in templates.items():
        try:
            texts[name] = template.render(values)
        except ScaleupError as error:
            problems += error.problems
        else:
            problems += _text_problems(name, texts[name])
    if problems:
        raise ScaleupError(list(dict.fromkeys(problems)))
    return texts


def _text_problems(name: str, text: str) -> list[Problem]:
    if not text.strip():
        return [Problem(name, "is empty", "mend or drop the row")]
    try:
        text.isascii() or text.encode()
    except UnicodeEncodeError:  # JSON can spell these; tokenizers then fail in the middle of the training
        return [Problem(name, "holds half of a surrogate pair", "mend or drop the row")]
    return []


def _label(column: str, values: Values) -> str | int:
    label = values.get(column)
    if isinstance(label, bool) or not isinstance(label, (str, int)) or label == "":
        raise ScaleupError(column_problem(column, values, wanted="a label or its number"))
    return label


def _messages(column: str, values: Values) -> list[Message]:
    messages = _well_formed(column, values)
    if not any(message["role"] == "assistant" and message["content"].strip() for message in messages):
        raise ScaleupError.of(column, "has no answer of the assistant", "add an assistant message with content")
    return messages


def _opening(column: str, values: Values) -> Chat:
    messages = _well_formed(column, values)
    last = max((at for at, message in enumerate(messages) if message["role"] == "assistant"), default=len(messages))
    if not any(message["content"].strip() for message in messages[:last]):
        raise ScaleupError.of(column, "has no message before the assistant's last", "start it with a user message")
    return Chat(messages[:last])


def _well_formed(column: str, values: Values) -> list[Message]:
    messages = values.get(column)
    if not isinstance(messages, list):
        raise ScaleupError(column_problem(column, values, wanted="a list of messages"))
    problems = [problem for at, message in enumerate(messages) for problem in _faults(f"{column}[{at}]", message)]
    if problems:
        raise ScaleupError(problems)
    return [{"role": message["role"], "content": message["content"]} for message in messages]


def _faults(where: str, message: Any) -> list[Problem]:
    if not isinstance(message, Mapping):
        return [Problem(where, "is no message", "write {role: ..., content: ...}")]
    role, content = message.get("role"), message.get("content")
    problems = []
    if role not in ROLES:
        problems.append(Problem(f"{where}.role", f"is {role!r}", f"use one of {', '.join(ROLES)}"))
    if not isinstance(content, str):
        problems.append(Problem(f"{where}.content", "is no text", "make it text"))
    elif content:
        problems += [problem for problem in _text_problems(f"{where}.content", content) if content.strip()]
    return problems
