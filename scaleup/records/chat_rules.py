"""The data section of a config goes in; mistakes in what it says of conversations come out: a chat template that is not
there, and keys without a meaning for the rows."""

from __future__ import annotations

from collections.abc import Container, Iterator, Sequence

from scaleup.config.data import DataConfig, RowFormat
from scaleup.config.fields import is_template_file
from scaleup.errors import Problem, ScaleupError
from scaleup.records.chat_templates import TRL, has_trl, read_template
from scaleup.records.format_rules import chat_key, holds_preferences, row_format, states_format
from scaleup.records.parts import bare_column
from scaleup.records.template import Template


def chat_problems(data: DataConfig, splits: Sequence[str], prompts_only: Container[str] = ()) -> Iterator[Problem]:
    """Yields the mistakes. Of the splits in `prompts_only` rows are answered, not learned. A name that may be one of
    the tokenizer's own templates is not looked at, nor TRL's where the control plane is installed alone."""
    yield from _template_problems(data.chat_template)
    if data.train_on == "last" and not data.completion_only_loss:
        yield Problem("data.train_on", "is last, and completion_only_loss: false learns everything", "leave one out")
    if data.split_turns:
        yield from _split_problems(data)
    if "train" not in splits or not data.train:
        return
    forms = [row_format(data, source) for source in data.train]
    if not all(states_format(form) for form in forms):
        return  # which is a mistake of its own, or cannot be seen
    if "train" in prompts_only:
        why = "is for conversations that are learned, and rows are answered here"
    elif not any(_may_be_chats(form) for form in forms):
        why = "is for conversations, and no row is one that is learned"
    else:
        return
    for key in ("train_on", "split_turns"):
        if getattr(data, key) != DataConfig.model_fields[key].default:
            yield Problem(f"data.{key}", why, "leave it out")


def _split_problems(data: DataConfig) -> Iterator[Problem]:
    """Yields what cannot be done with rows of which several are one conversation's."""
    if data.streaming:
        what = "makes several rows of one, and a stream is drawn row by row"
        yield Problem("data.split_turns", what, "leave out data.streaming, or split the file")
    if data.validation_fraction is not None:
        what = "would put answers of one conversation on both sides of data.validation_fraction"
        yield Problem("data.split_turns", what, "name held-out conversations with data.validation")


def _template_problems(named: str | None) -> Iterator[Problem]:
    if named is not None and (is_template_file(named) or (named.startswith(TRL) and has_trl())):
        try:
            read_template(named)
        except ScaleupError as error:
            yield from error.problems


def _may_be_chats(form: RowFormat) -> bool:
    """Returns whether rows of a format may be conversations that are learned: a column alone may hold messages."""
    if holds_preferences(form):
        return False
    try:
        return chat_key(form) is not None or any(
            bare_column(Template(text)) for text in (form.prompt, form.completion) if text is not None
        )
    except ScaleupError:
        return True  # the template's mistake is reported
