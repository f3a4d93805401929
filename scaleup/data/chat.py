"""A conversation goes in; the text that its chat template makes of it, and the characters of that which are learned,
come out.

What is learned of an answer are the words that generation has to find by itself: from the end of the template's
generation prompt to the token that ends the turn, and the line break that many templates put behind it. A template that
marks its answers (`{% generation %}`) says so; of the others the places are found by rendering: the conversation before
the answer with the generation prompt, the conversation with the answer, and one with another answer in its place, which
shows what stands behind the words."""

from __future__ import annotations

import json
import re
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product
from typing import Any, Literal

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import render_jinja_template

from scaleup.data.text import Span, num_common
from scaleup.errors import ScaleupError
from scaleup.records.chat_templates import read_template
from scaleup.records.chats import Chat, Message

TrainOn = Literal["assistant", "last", "all"]
SECONDS = 5.0
"""What a template may take for one conversation."""
PROBE = "Zq7x"
"""An answer whose place in the text is sought. No template's own words begin so."""
MARKS_ANSWERS = re.compile(r"\{%[-+]?\s*generation\s*[-+]?%\}")
END = re.compile(r"\s*(?:(?:<[^<>]+>|\[[^\[\]]+\])+|\S[^\n]*)?\n*")
"""What ends a turn: markers in a row, or else the rest of a line, and the line breaks behind them."""
MARKERS = re.compile(r"<[^<>]+>|\[[^\[\]]+\]")


@dataclass(frozen=True)
class Rendered:
    """Holds the text of a conversation and what of it is learned."""

    text: str
    spans: tuple[Span, ...]
    num_rewritten: int = 0
    """Answers that are not learned: behind them, the template shows them otherwise than they were given."""
    num_altered: int = 0
    """Answers of which the template does not show the words as they are."""


@dataclass(frozen=True)
class _Answer:
    """Holds one answer as it is when it is given: the text up to there, and the characters that are learned."""

    text: str
    start: int
    end: int


class ChatTemplate:
    """Renders conversations with the template of a tokenizer, as Transformers' apply_chat_template does."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer

    def prompt(self, chat: Chat) -> str:
        """Returns the text that an answer to the conversation starts from; none of an empty one.

        Raises ScaleupError at data.messages for what the template refuses."""
        return self._render(chat.messages, chat.tools, prompt=True) if chat.messages else ""

    def whole(self, chat: Chat) -> str:
        """Returns the text of the conversation, without a generation prompt. Raises as `prompt` does."""
        return self._render(chat.messages, chat.tools)

    def conversation(self, chat: Chat, train_on: TrainOn = "assistant") -> Rendered:
        """Returns the text up to the last answer that is learned, and the characters of it that are: those of all
        answers, of the last one, or all.

        Where the template shows an answer otherwise once the conversation goes on, only the last one is as it is at
        inference, and learned. Raises ScaleupError as `prompt` does, where an answer cannot be told from what is before
        it, and for tool calls that the template leaves out."""
        if train_on == "all":
            text = self.whole(chat)
            return Rendered(text, ((0, len(text)),))
        learned = chat.answers
        if not learned:
            raise ScaleupError.of("data.messages", "has no answer that is learned", "give one, or drop the row")
        learned = learned[-1:] if train_on == "last" else learned
        self._check_tool_calls(chat)
        shown = replace(chat, messages=chat.messages[: learned[-1] + 1])
        return self._marked(shown, learned) if self._marks_answers(chat.tools) else self._found(shown, learned)

    @cached_property
    def end(self) -> str:
        """What ends an answer, as text; none where the template ends no turn."""
        try:
            return _end_of(self._closing)
        except ScaleupError:  # it refuses a conversation as short as the one that is tried
            return ""

    @cached_property
    def end_ids(self) -> list[int]:
        """The tokens that end an answer, of words or of a tool call. None where that is not a token of its own: then
        generation cannot stop there."""
        call = {"type": "function", "id": "a12345678", "function": {"name": PROBE, "arguments": {}}}
        turn = {"role": "assistant", "content": "", "tool_calls": [call]}
        ends = [self.end]
        try:
            text = self._render([{"role": "user", "content": "a"}, turn], None)
            if PROBE in text and not text.endswith(self._closing):
                ends.append(text.rstrip())
        except ScaleupError:
            pass  # it knows no tool calls
        markers = [found[-1] for end in ends if (found := MARKERS.findall(end))]
        known = self._tokenizer.get_vocab()
        return sorted({known[marker] for marker in markers if marker in known})

    def _marked(self, chat: Chat, learned: Sequence[int]) -> Rendered:
        """Returns what the template itself marks as the answers that are learned."""
        text, marks = self._tracked(chat.messages, chat.tools)
        turns = [turn for turn, message in enumerate(chat.messages) if message["role"] == "assistant"]
        if len(learned) == len(turns):
            return Rendered(text, tuple(marks), num_altered=self._altered(chat, learned, text))
        kept: list[Span] = []
        for turn in learned:
            before = self._render(chat.messages[:turn], chat.tools) if turn else ""
            region = num_common(before, text), len(self._render(chat.messages[: turn + 1], chat.tools))
            kept += [mark for mark in marks if region[0] <= mark[0] < region[1]]
        return Rendered(text, tuple(dict.fromkeys(kept)), num_altered=self._altered(chat, learned, text))

    def _found(self, chat: Chat, learned: Sequence[int]) -> Rendered:
        *earlier, last = (self._answer(chat, turn) for turn in learned)
        kept = [answer for answer in earlier if last.text.startswith(answer.text[: answer.end])]
        spans = tuple((answer.start, answer.end) for answer in (*kept, last))
        return Rendered(last.text, spans, len(earlier) - len(kept), self._altered(chat, learned, last.text))

    def _answer(self, chat: Chat, turn: int) -> _Answer:
        history, tools = chat.messages[:turn], chat.tools
        text = self._render(chat.messages[: turn + 1], tools)
        prompt = self._render(history, tools, prompt=True) if history else None
        if prompt is not None and text.startswith(prompt) and self._header:
            start = len(prompt)
        else:
            start = self._start(history, tools, text, prompt)
        return _Answer(text, start, self._end(history, tools, text, start))

    def _start(self, history: list[Message], tools: Any, text: str, prompt: str | None) -> int:
        """Returns where the words of the answer at the text's end begin, if the text before them is not simply the
        generation prompt."""
        other = self._render([*history, {"role": "assistant", "content": PROBE}], tools)
        words = other.rfind(PROBE)
        same = num_common(other[:words], text)
        if prompt is None:  # the template cannot be asked for the generation prompt of nothing
            start = self._behind_header(other[:words])
        elif self._header:
            start = min(num_common(prompt, other), same)
            if start < num_common(prompt, self._render(history, tools)):
                words = -1
        else:
            start = len(prompt) + self._behind_header(other[len(prompt) : words])
        if words < 0 or start > same:  # what is before the answer is not what generation begins with
            what = "the chat template shows what is before an answer otherwise once the answer is there"
            raise ScaleupError.of("data.messages", what, "use data.train_on: all, or another data.chat_template")
        return start

    def _behind_header(self, text: str) -> int:
        """Returns where what the generation prompt adds, or most of it, ends in the text before an answer's words. Of a
        template without a generation prompt all is header that is not space."""
        if not self._header:
            return len(text.rstrip(" "))
        for length in range(len(self._header), 0, -1):
            if (place := text.rfind(self._header[:length])) >= 0:
                return place + length
        return len(text)

    def _end(self, history: list[Message], tools: Any, text: str, start: int) -> int:
        """Returns where the answer at the text's end ends, with the token that ends its turn."""
        closing = self._closing
        if not text[start:].endswith(closing):
            other = self._render([*history, {"role": "assistant", "content": PROBE}], tools)
            closing = other[other.rfind(PROBE) + len(PROBE) :]
            if not text[start:].endswith(closing):
                return len(text)
        return len(text) - len(closing) + len(_end_of(closing))

    @cached_property
    def _closing(self) -> str:
        """What stands behind the words of an answer that is the last message."""
        text = self._render([{"role": "user", "content": "a"}, {"role": "assistant", "content": PROBE}], None)
        return text[text.rfind(PROBE) + len(PROBE) :] if PROBE in text else ""

    @cached_property
    def _header(self) -> str:
        """What the generation prompt adds to a conversation; nothing where the template has none."""
        message = [{"role": "user", "content": "a"}]
        without, prompt = self._render(message, None), self._render(message, None, prompt=True)
        return prompt[num_common(without, prompt) :] if prompt != without else ""

    def _altered(self, chat: Chat, learned: Sequence[int], text: str) -> int:
        contents = [chat.messages[turn].get("content") or "" for turn in learned]
        return sum(content.strip() not in text for content in contents)

    def _check_tool_calls(self, chat: Chat) -> None:
        calling = [turn for turn, message in enumerate(chat.messages) if message.get("tool_calls")]
        if not calling:
            return
        silent = [{key: value for key, value in m.items() if key != "tool_calls"} for m in chat.messages]
        silent = [m if m.get("content") is not None else {**m, "content": ""} for m in silent]
        try:
            is_shown = self._render(silent, chat.tools) != self.whole(chat)
        except ScaleupError:
            is_shown = True  # it asks for them
        if not is_shown:
            what = f"the chat template leaves out the tool_calls of messages[{calling[0]}]"
            remedy = "name a template that shows them (data.chat_template), or drop the row"
            raise ScaleupError.of("data.messages", what, remedy)

    def _marks_answers(self, tools: Any) -> bool:
        return bool(MARKS_ANSWERS.search(self._template(tools)))

    def _template(self, tools: Any) -> str:
        if not self._tokenizer.chat_template:
            what = "the tokenizer has no chat template, which conversations need"
            raise ScaleupError.of("data.messages", what, "name one with data.chat_template")
        try:
            return str(self._tokenizer.get_chat_template(tools=tools))
        except ValueError as error:
            raise ScaleupError.of("data.chat_template", str(error), "name one of them, or a file") from None

    def _render(self, messages: Sequence[Message], tools: Any, prompt: bool = False) -> str:
        return self._tracked(messages, tools, prompt)[0]

    def _tracked(self, messages: Sequence[Message], tools: Any, prompt: bool = False) -> tuple[str, list[Span]]:
        """Returns the text, and the characters that the template marks as the assistant's."""
        failure: Exception | None = None
        for shown in _ways(messages, self._takes_parts):
            try:
                return self._rendered(shown, tools, prompt)
            except Exception as error:  # a template may fail in any way
                failure = error
                if isinstance(error, TimeoutError):
                    break
        roles = ", ".join(message["role"] for message in messages)
        words = "took too long" if isinstance(failure, TimeoutError) else str(failure).strip() or type(failure).__name__
        verb = "refuses" if isinstance(failure, TemplateError) else "fails on"
        what = f"the chat template {verb} messages of {roles}: {words}"
        raise ScaleupError.of("data.messages", what, "use only turns that the model's template knows") from None

    @cached_property
    def _takes_parts(self) -> bool:
        """Whether the template loses a content that is text, and shows one that is a list of parts."""
        message = {"role": "user", "content": PROBE}
        try:
            if PROBE in self._rendered([message], None, False)[0]:
                return False
            return PROBE in self._rendered([_in_parts(message)], None, False)[0]
        except Exception:  # it is told when a row is rendered
            return False

    def _rendered(self, messages: list[Message], tools: Any, prompt: bool) -> tuple[str, list[Span]]:
        template = self._template(tools)
        marks = bool(MARKS_ANSWERS.search(template))
        with _time_limit():
            texts, spans = render_jinja_template(
                [messages],
                tools=tools,
                chat_template=template,
                add_generation_prompt=prompt,
                return_assistant_tokens_mask=marks,
                **self._tokenizer.special_tokens_map,
            )
        return texts[0], [(start, end) for start, end in spans[0]] if marks else []


def use_template(tokenizer: PreTrainedTokenizerBase, named: str | None) -> None:
    """Gives a tokenizer the chat template that `data.chat_template` names: a file, one that TRL ships (`trl:NAME`), or
    one of the tokenizer's own.

    Raises ScaleupError at data.chat_template if it is none of these, or cannot be compiled."""
    if named is None:
        return
    if isinstance(tokenizer.chat_template, dict) and named in tokenizer.chat_template:
        tokenizer.chat_template = tokenizer.chat_template[named]
        return
    tokenizer.chat_template = read_template(named)


def _end_of(closing: str) -> str:
    """Returns what ends the turn, of all that stands behind an answer's words: nothing that ends the conversation."""
    end = END.match(closing)
    assert end is not None, "it matches anywhere"
    return end.group()


def _ways(messages: Sequence[Message], as_parts: bool) -> Iterator[list[Message]]:
    """Yields messages in the forms that templates want: without keys that are null, as Transformers gives them; then,
    where there are tool calls, also with their content as null or as no text, and their arguments as JSON text."""
    plain = [{key: value for key, value in message.items() if value is not None} for message in messages]
    if as_parts:
        plain = [_in_parts(message) for message in plain]
    yield plain
    calling = [turn for turn, message in enumerate(plain) if message.get("tool_calls")]
    if not calling:
        return
    empty: list[Message] = [{}, {"content": None}, {"content": ""}]
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
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
