"""Messages go in; the text that a tokenizer's chat template makes of them, and what it marks in it, come out."""

from __future__ import annotations

import json
import re
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from functools import cache, cached_property
from itertools import product
from typing import Any

from jinja2 import TemplateError, TemplateSyntaxError
from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import _compile_jinja_template, render_jinja_template

from scaleup.data.text import Span
from scaleup.errors import ScaleupError
from scaleup.records.chat_templates import KEY, read_template
from scaleup.records.chats import Message

SECONDS = 5.0
"""What a template may take for one conversation."""
PROBE = "Zq7x"
"""Words whose place in the text is sought. No template's own words begin so."""
PART = re.compile(r"""(['"])type\1: ?\1text\1""")
"""A part of a content that is written as Python or JSON."""
DRAWS = re.compile(r"\|\s*random\b|\blipsum\b")
"""What Jinja draws at random."""
MARKS_ANSWERS = re.compile(r"\{%[-+]?\s*generation\s*[-+]?%\}")


class SlowTemplate(ScaleupError):
    """Is raised where a template goes on for too long: it would for other conversations too."""


class Renderer:
    """Renders messages with the template of a tokenizer, as Transformers' apply_chat_template does.

    Raises ScaleupError at data.messages for what the template refuses, fails on, or takes too long for."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer

    def text(self, messages: Sequence[Message], tools: Any, prompt: bool = False) -> str:
        """Returns the text of messages, with the generation prompt behind it if it is wanted."""
        return self.tracked(messages, tools, prompt)[0]

    def tracked(self, messages: Sequence[Message], tools: Any, prompt: bool = False) -> tuple[str, list[Span]]:
        """Returns the text, and the characters that the template marks as the assistant's."""
        failure: Exception | None = None
        roles = ", ".join(message["role"] for message in messages)
        for shown in _ways(messages, self._takes_parts):
            try:
                rendered = self._rendered(shown, tools, prompt)
                self._check_steady(rendered, shown, tools, prompt)
                return rendered
            except ScaleupError:  # there is no template to take, or none that one could learn from
                raise
            except TimeoutError:
                what = f"the chat template took more than {SECONDS:g} seconds for messages of {roles}"
                raise SlowTemplate.of("data.messages", what, "mend its loops, or name another template") from None
            except Exception as error:  # a template may fail in any way
                failure = error
        words = str(failure).strip() or type(failure).__name__
        verb = "refuses" if isinstance(failure, TemplateError) else "fails on"
        what = f"the chat template {verb} messages of {roles}: {words}"
        raise ScaleupError.of("data.messages", what, "use only turns that the model's template knows") from None

    def marks_answers(self, tools: Any) -> bool:
        """Returns whether the template itself marks what the assistant says."""
        return _has(MARKS_ANSWERS, self._template(tools))

    @property
    def shows_date(self) -> bool:
        """Returns whether the template asks for the time, so that it makes other text of a row on another day."""
        return "strftime_now" in self._template(None)

    @cached_property
    def _takes_parts(self) -> bool:
        """Whether the template loses a content that is text, and shows one that is a list of parts."""
        message = {"role": "user", "content": PROBE}
        try:
            if PROBE in self._rendered([message], None, False)[0]:
                return False
            text = self._rendered([_in_parts(message)], None, False)[0]
            return PROBE in text and not PART.search(text)
        except Exception:  # it is told when a row is rendered
            return False

    def _check_steady(
        self, rendered: tuple[str, list[Span]], messages: list[Message], tools: Any, prompt: bool
    ) -> None:
        """Raises ScaleupError if a template that draws at random makes other text of the same messages."""
        if _has(DRAWS, self._template(tools)) and self._rendered(messages, tools, prompt) != rendered:
            what = "the chat template makes other text of the same messages each time"
            raise ScaleupError.of("data.messages", what, "take out what it draws at random, or name another template")

    def _rendered(self, messages: list[Message], tools: Any, prompt: bool) -> tuple[str, list[Span]]:
        template = self._template(tools)
        marks = _has(MARKS_ANSWERS, template)
        with _time_limit():
            _compile_jinja_template(template).globals["strftime_now"] = _strftime_now  # it is compiled once
            texts, spans = render_jinja_template(
                [messages],
                tools=tools,
                chat_template=template,
                add_generation_prompt=prompt,
                return_assistant_tokens_mask=marks,
                **self._tokenizer.special_tokens_map,
            )
        return texts[0], [(start, end) for start, end in spans[0]] if marks else []

    def _template(self, tools: Any) -> str:
        named = self._tokenizer.chat_template
        if not named:
            what = "the tokenizer has no chat template, which conversations need"
            raise ScaleupError.of(KEY, what, "name one")
        if isinstance(named, dict) and "default" not in named:
            what = f"the tokenizer has the chat templates {', '.join(sorted(named))}, and none is called default"
            raise ScaleupError.of(KEY, what, f"name one of them, e.g. data.chat_template: {min(named)}")
        return str(self._tokenizer.get_chat_template(tools=tools))


@cache
def _has(pattern: re.Pattern[str], template: str) -> bool:
    """Returns whether a template has a pattern: it is long, and asked about with every rendering."""
    return bool(pattern.search(template))


@cache
def _now() -> datetime:
    """Returns one time for all that a process renders: the renderings of a conversation are compared."""
    return datetime.now()


def _strftime_now(form: str) -> str:
    return _now().strftime(form)


def use_template(tokenizer: PreTrainedTokenizerBase, named: str | None) -> None:
    """Gives a tokenizer the chat template that `data.chat_template` names: a file, one that TRL ships (`trl:NAME`), or
    one of the tokenizer's own, which keeps its name, so that a tokenizer that was saved with it can be given it again.

    Raises ScaleupError at data.chat_template if it is none of these, or cannot be compiled."""
    if named is None:
        return
    own = tokenizer.chat_template
    is_own = isinstance(own, dict) and named in own
    template = own[named] if is_own else read_template(named)
    try:
        with _time_limit():
            render_jinja_template([[]], chat_template=template)
    except TemplateSyntaxError as error:
        what = f"{named} is no Jinja template: {error.message} (line {error.lineno})"
        raise ScaleupError.of(KEY, what, "mend it, or name another") from None
    except Exception:  # it wants messages, and rows have some
        pass
    tokenizer.chat_template = {named: template, "default": template} if is_own else template


def _ways(messages: Sequence[Message], as_parts: bool) -> Iterator[list[Message]]:
    """Yields messages in the forms that templates want: without keys that are null, as Transformers gives them; where
    there are tool calls, also with no content beside them as null or as no text, and with arguments as JSON text."""
    plain = [{key: value for key, value in message.items() if value is not None} for message in messages]
    for message in plain:
        if message.get("tool_calls") and not message.get("content"):
            message.pop("content", None)
    if as_parts:
        plain = [_in_parts(message) for message in plain]
    yield plain
    calling = [turn for turn, message in enumerate(plain) if message.get("tool_calls")]
    if not calling:
        return
    nothing = [{"type": "text", "text": ""}] if as_parts else ""
    empty: list[Message] = [{}, {"content": None}, {"content": nothing}]
    for content, as_text in product(empty, (False, True)):
        ways = [dict(message) for message in plain]
        for turn in calling:
            ways[turn] = {**content, **plain[turn]}
            if as_text:
                ways[turn]["tool_calls"] = [_with_text(call) for call in plain[turn]["tool_calls"]]
        yield ways


def _in_parts(message: Message) -> Message:
    content = message.get("content")
    return {**message, "content": [{"type": "text", "text": content}]} if isinstance(content, str) else message


def _with_text(call: dict[str, Any]) -> dict[str, Any]:
    """Returns a tool call with its arguments as JSON text."""
    function = call.get("function", call)
    arguments = function.get("arguments")
    text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
    function = {**function, "arguments": text}
    return {**call, "function": function} if "function" in call else function


@contextmanager
def _time_limit() -> Iterator[None]:
    """Raises TimeoutError for a template that goes on for too long. Only the main thread can be interrupted."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(*_: object) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, stop)
    timer = signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        signal.setitimer(signal.ITIMER_REAL, *timer)  # somebody else's goes on
