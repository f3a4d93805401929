"""Examples made of rows: which format a source's rows have, whether the config states it properly, and the making
itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from scaleup.config.data import DataConfig, RowFormat, SourceConfig
from scaleup.errors import Problem, ScaleupError
from scaleup.records.alpaca import ALPACA, read_alpaca
from scaleup.records.chats import Chat, is_answer, says_something
from scaleup.records.format_rules import chat_key, format_mistakes, format_problems, row_format
from scaleup.records.instructions import INSTRUCTIONS, phrasing_of
from scaleup.records.labels import Label, label_of, truth_of
from scaleup.records.parts import Templates, is_list, read_parts, rendered, together
from scaleup.records.template import Template, column_problem
from scaleup.records.turns import read_tools, read_turns, with_system

__all__ = [
    "Example",
    "Labelled",
    "Opening",
    "PlainText",
    "PromptCompletion",
    "UnpairedPreference",
    "example_maker",
    "format_problems",
    "labelled_maker",
    "prompt_maker",
    "response_faults",
    "row_format",
    "row_problem",
    "unpaired_maker",
    "valid_format",
]


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
    """Holds a text and its class, by name, by number or by truth value."""

    text: str
    label: Label


@dataclass(frozen=True)
class UnpairedPreference:
    """Holds a prompt with a response, and whether that is desirable."""

    example: PromptCompletion | Chat
    is_desirable: bool


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
    if chat_key(form):
        return lambda values, index: _learnable(form, _conversation(form, values))
    if form.text is not None:
        text = {"text": Template(form.text, form.columns)}
        return lambda values, index: PlainText(**rendered(text, values))
    pairs = [
        {"prompt": Template(prompt, form.columns), "completion": Template(completion, form.columns)}
        for prompt, completion in _phrasings(form)
    ]
    if form.template is not None:
        return lambda values, index: PromptCompletion(**rendered(_chosen(pairs, index), values))
    return lambda values, index: _prompt_completion(data, form, pairs[0], values)


def labelled_maker(data: DataConfig, source: SourceConfig) -> Callable[[Values, int], Labelled]:
    """Returns a function like `example_maker`'s, for rows of `text` and `label`."""
    form = valid_format(data, source)
    assert form.text is not None and form.label is not None, "the format has been looked at"
    text, column = {"text": Template(form.text, form.columns)}, form.label
    return lambda values, index: _labelled(text, column, values)


def unpaired_maker(data: DataConfig, source: SourceConfig) -> Callable[[Values, int], UnpairedPreference]:
    """Returns a function like `example_maker`'s, for rows of `prompt`, `completion` and a `label` of true or false."""
    form = valid_format(data, source)
    make, column = example_maker(data, source), form.label
    assert column is not None, "the format has been looked at"

    def unpaired(values: Values, index: int) -> UnpairedPreference:
        made = together({"example": partial(make, values, index), "label": partial(truth_of, column, values)})
        return UnpairedPreference(made["example"], made["label"])

    return unpaired


def prompt_maker(data: DataConfig, source: SourceConfig) -> Callable[[Values, int], str | Chat]:
    """Returns a function that makes only the prompt, and needs no completion. Of a chat it takes the messages before
    the assistant's last one."""
    form = valid_format(data, source, prompts_only=True)
    if chat_key(form):
        return lambda values, index: _opening(form, _conversation(form, values, with_answer=False))
    prompts = [{"prompt": Template(prompt, form.columns)} for prompt, _ in _phrasings(form)]
    return lambda values, index: _prompt(form, _chosen(prompts, index), values)


def row_problem(where: str, error: ScaleupError) -> Problem:
    """Joins all problems of the row at `where` into one."""
    what = "; ".join(f"'{problem.where}' {problem.what}" for problem in error.problems)
    return Problem(where, what, "; ".join(dict.fromkeys(p.remedy for p in error.problems if p.remedy)))


def valid_format(data: DataConfig, source: SourceConfig, prompts_only: bool = False) -> RowFormat:
    """Returns the format of a source's rows. Raises ScaleupError with the mistakes in it."""
    form = row_format(data, source)
    if mistakes := format_mistakes(form, "data", prompts_only, data.is_judged):
        raise ScaleupError(mistakes)
    return form


def _phrasings(form: RowFormat) -> Sequence[tuple[str, str]]:
    if form.template is not None:
        return INSTRUCTIONS[form.template].phrasings
    return [(form.prompt or "", form.completion or "")]


def _chosen(phrasings: list[dict[str, Template]], index: int) -> dict[str, Template]:
    return phrasings[phrasing_of(index, len(phrasings))] if len(phrasings) > 1 else phrasings[0]


def _labelled(text: Templates, column: str, values: Values) -> Labelled:
    made = together({"texts": partial(rendered, text, values), "label": partial(label_of, column, values)})
    return Labelled(**made["texts"], label=made["label"])


def _conversation(form: RowFormat, values: Values, with_answer: bool = True) -> Chat:
    if form.messages is None:
        chat = partial(read_alpaca, values, form.columns, with_answer)
    elif form.messages not in values:
        raise ScaleupError(column_problem(form.messages, values))
    else:
        chat = partial(read_turns, form.messages, values[form.messages])
    made = together({"chat": chat, "tools": partial(read_tools, form.tools, values)})
    whole = replace(made["chat"], tools=made["tools"])
    return whole if form.messages is None else with_system(whole, values)


def _learnable(form: RowFormat, chat: Chat) -> Chat:
    """Returns a chat in which something can be learned."""
    answers = {at for at, message in enumerate(chat.messages) if is_answer(message)}
    if not answers:
        raise ScaleupError.of(_place(form), "has no answer of the assistant", "add an assistant message with content")
    if not answers.intersection(chat.answers):
        what = "has no answer that is learned: weight 0 or train false is on each"
        raise ScaleupError.of(_place(form), what, "leave it out of one, or drop the row")
    return chat


def _opening(form: RowFormat, chat: Chat) -> Chat:
    roles = [message["role"] for message in chat.messages]
    last = max((at for at, role in enumerate(roles) if role == "assistant"), default=len(roles))
    if form.template == ALPACA:
        last = len(roles)  # its answer was not read
    if not any(map(says_something, chat.messages[:last])):
        what = "has no message before the assistant's last"
        raise ScaleupError.of(_place(form), what, "start it with a user message")
    unlearned = frozenset(at for at in chat.unlearned if at < last)
    return replace(chat, messages=chat.messages[:last], unlearned=unlearned)


def _place(form: RowFormat) -> str:
    return form.messages or form.prompt or ALPACA


def _prompt_completion(
    data: DataConfig, form: RowFormat, templates: Templates, values: Values
) -> PromptCompletion | Chat:
    if not any(is_list(template, values) for template in templates.values()):
        return PromptCompletion(**rendered(templates, values))
    parts = read_parts(templates, form.tools, values)
    prompt, completion = parts["prompt"], parts["completion"]
    begin = len(prompt.messages)
    if problems := [*_prompt_faults(prompt), *response_faults("completion", completion)]:
        raise ScaleupError(problems)
    given = frozenset(at for at, message in enumerate(prompt.messages) if message["role"] == "assistant")
    unlearned = prompt.unlearned | {begin + at for at in completion.unlearned}
    return _learnable(form, Chat(prompt.messages + completion.messages, parts["tools"], unlearned, given))


def _prompt(form: RowFormat, templates: Templates, values: Values) -> str | Chat:
    if not is_list(templates["prompt"], values):
        return rendered(templates, values)["prompt"]
    parts = read_parts(templates, form.tools, values)
    prompt: Chat = parts["prompt"]
    if problems := _prompt_faults(prompt):
        raise ScaleupError(problems)
    return replace(prompt, tools=parts["tools"])


def _prompt_faults(prompt: Chat) -> list[Problem]:
    return [] if any(map(says_something, prompt.messages)) else [Problem("prompt", "is empty", "mend or drop the row")]


def response_faults(name: str, response: Chat) -> list[Problem]:
    """Returns what keeps messages from going on a prompt."""
    if response.messages and response.messages[0]["role"] != "assistant":
        what = f"goes on with a message of role {response.messages[0]['role']}"
        return [Problem(name, what, "let the assistant's follow the prompt")]
    if not any(map(is_answer, response.messages)):
        return [Problem(name, "is empty", "mend or drop the row")]
    return []
