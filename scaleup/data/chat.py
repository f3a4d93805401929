"""A conversation goes in; the text that its chat template makes of it, and the characters of that which are learned,
come out.

What is learned of an answer are the words that generation has to find by itself: from the end of the template's
generation prompt to the token that ends the turn, and the line break that many templates put behind it. A template that
marks its answers (`{% generation %}`) says so; of the others the places are found by rendering: the conversation before
the answer with the generation prompt, the conversation with the answer, and one with another answer in its place, which
shows what stands behind the words."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from copy import copy
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import takewhile
from typing import Any, Literal

from transformers import PreTrainedTokenizerBase

from scaleup.data.marks import Rendered, marked, num_altered, said
from scaleup.data.rendering import PROBE, Renderer
from scaleup.data.text import Span, num_common
from scaleup.data.tool_calls import check_tool_calls
from scaleup.errors import ScaleupError
from scaleup.records.chats import Chat, Message

TrainOn = Literal["assistant", "last", "all"]
MARKER = r"<[^<>]+>|\[[^\[\]]+\]"
END = re.compile(rf"\s*(?:(?:{MARKER})+|\S[^\n]*)?\n*")
"""What ends a turn: markers in a row, or else the rest of a line, and the line breaks behind them."""
PIECE = re.compile(rf"{MARKER}|\n+|[^<\[\n]+|.")
LAST_MARKER = re.compile(rf"(?:{MARKER})\Z")


@dataclass(frozen=True)
class _Answer:
    """Holds one answer as it is when it is given: the text up to there, and the characters that are learned."""

    text: str
    start: int
    end: int

    @property
    def until_end(self) -> str:
        return self.text[: self.end]


@dataclass(frozen=True)
class _Closing:
    """Holds what stands behind the words of an answer that is the last message: what ends the turn, which stands there
    in the middle of a conversation too, and what ends the conversation."""

    of_turn: str = ""
    of_chat: str = ""


class ChatTemplate:
    """Renders conversations with the template of a tokenizer, as Transformers' apply_chat_template does."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._renderer = Renderer(tokenizer)
        self._with_tools = _of_tools(tokenizer)

    def prompt(self, chat: Chat) -> str:
        """Returns the text that an answer to the conversation starts from; none of an empty one.

        Raises ScaleupError at data.messages for what the template refuses, and for tool calls that it leaves out."""
        check_tool_calls(self._renderer, chat)
        return self._renderer.text(chat.messages, chat.tools, prompt=True) if chat.messages else ""

    def whole(self, chat: Chat) -> str:
        """Returns the text of the conversation, without a generation prompt. Raises as `prompt` does."""
        check_tool_calls(self._renderer, chat)
        return self._renderer.text(chat.messages, chat.tools)

    def conversation(self, chat: Chat, train_on: TrainOn = "assistant") -> Rendered:
        """Returns the text up to the last answer that is learned, and the characters of it that are: those of all
        answers, of the last one, or all but what messages say that are read alone.

        Where the template shows an answer otherwise once the conversation goes on, only the last one is as it is at
        inference, and learned. Raises ScaleupError as `prompt` does, and where an answer cannot be told from what is
        before it."""
        if chat.tools and self._with_tools:
            return self._with_tools.conversation(chat, train_on)
        if train_on == "all":
            return self._all(chat)
        learned = chat.answers
        if not learned:
            raise ScaleupError.of("data.messages", "has no answer that is learned", "give one, or drop the row")
        learned = learned[-1:] if train_on == "last" else learned
        shown = replace(chat, messages=chat.messages[: learned[-1] + 1])
        check_tool_calls(self._renderer, shown)
        if self._renderer.marks_answers(chat.tools):
            return marked(self._renderer, shown, learned)
        return self._found(shown, learned)

    @cached_property
    def end(self) -> str:
        """What ends an answer, as text; none where the template ends no turn."""
        return self._closing.of_turn

    @property
    def shows_date(self) -> bool:
        """Whether the template makes other text of a row on another day."""
        return self._renderer.shows_date

    @cached_property
    def end_ids(self) -> list[int]:
        """The tokens that end an answer, of words or of a tool call. None where that is not a token of its own: then
        generation cannot stop there."""
        tokenizer = self._tokenizer
        known = tokenizer.get_added_vocab() | dict(
            zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True)
        )
        ends = {_last_marker(self.end.strip())} | self._call_ends()
        own = {known[token] for token in ends if token in known}
        return sorted(own.union(self._with_tools.end_ids if self._with_tools else ()))

    def _call_ends(self) -> set[str]:
        """Returns the marker that ends a message of tool calls: one that stands between two calls ends none."""
        calls = [
            {"type": "function", "id": f"a1234567{n}", "function": {"name": f"{PROBE}{n}", "arguments": {}}}
            for n in (1, 2)
        ]
        for made in (calls, calls[:1]):  # some templates take one call alone
            text = self._tried({"role": "assistant", "content": "", "tool_calls": made}) or ""
            place = text.rfind(f"{PROBE}{len(made)}")
            if place >= 0:
                end = _last_marker(text.removesuffix(self._closing.of_chat).rstrip())
                before = text[text.find(f"{PROBE}1") : place] if len(made) == 2 else ""
                return set() if end in before else {end}
        return set()

    def _all(self, chat: Chat) -> Rendered:
        text = self.whole(chat)
        closing = self._closing.of_turn if chat.unlearned else ""
        silent: list[Span] = []
        for start, end in sorted(said(self._renderer, chat, turn, text) for turn in chat.unlearned):
            end += len(closing) if end > start and text.startswith(closing, end) else 0
            silent.append((start, end))
        borders = [0, *(border for span in silent for border in span), len(text)]
        spans = tuple((start, end) for start, end in zip(borders[::2], borders[1::2], strict=True) if start < end)
        return Rendered(text, spans, silent=tuple(silent), num_altered=num_altered(chat, text))

    def _found(self, chat: Chat, learned: Sequence[int]) -> Rendered:
        last = self._answer(chat, learned[-1])
        earlier = list(self._earlier(chat, learned[:-1]))
        kept = [answer for answer in earlier if last.text.startswith(answer.until_end)]
        spans = tuple((answer.start, answer.end) for answer in (*kept, last))
        num_rewritten, num_refused = len(earlier) - len(kept), len(learned) - 1 - len(earlier)
        return Rendered(last.text, spans, num_rewritten, num_refused, num_altered(chat, last.text))

    def _earlier(self, chat: Chat, turns: Sequence[int]) -> Iterator[_Answer]:
        """Yields answers before the last, but those that the template refuses as the last of a conversation."""
        for turn in turns:
            try:
                yield self._answer(chat, turn)
            except ScaleupError:
                continue

    def _answer(self, chat: Chat, turn: int) -> _Answer:
        text = self._renderer.text(chat.messages[: turn + 1], chat.tools)
        text, start = self._begun(chat.messages[:turn], chat.tools, text)
        return _Answer(text, start, len(text.removesuffix(self._closing.of_chat)))

    def _begun(self, history: list[Message], tools: Any, text: str) -> tuple[str, int]:
        """Returns the text that ends with an answer, and where what generation finds of that begins.

        Where the template shows the history otherwise once the answer is there, the answer is laid behind the history
        that it is given to."""
        prompt = self._renderer.text(history, tools, prompt=True) if history else None
        if prompt is not None and text.startswith(prompt) and self._header:
            return text, len(prompt)
        other = self._renderer.text([*history, {"role": "assistant", "content": PROBE}], tools)
        words = other.rfind(PROBE)
        same = num_common(other[:words], text)
        if prompt is None:  # the template cannot be asked for the generation prompt of nothing
            start = self._behind_header(other[:words])
        elif not self._header:
            start = len(prompt) + self._behind_header(other[len(prompt) : words])
        else:
            start = min(num_common(prompt, other), same)
            if start < num_common(prompt, self._renderer.text(history, tools)):
                start = self._behind_header(other[:words])
                if start <= same and other[start:words] == self._lead:
                    return prompt + text[start:], len(prompt)
                words = -1
        if words < 0 or start > same:
            what = "the chat template shows what is before an answer otherwise once the answer is there"
            raise ScaleupError.of("data.messages", what, "use data.train_on: all, or another data.chat_template")
        return text, start

    def _behind_header(self, text: str) -> int:
        """Returns where what the generation prompt adds, or most of it, ends in the text before an answer's words. Of a
        template without a generation prompt all is header that is not space."""
        if not self._header:
            return len(text.rstrip(" "))
        for length in range(len(self._header), len(self._header) // 2, -1):
            if (place := text.rfind(self._header[:length])) >= 0:
                return place + length
        return len(text)

    @cached_property
    def _closing(self) -> _Closing:
        answer: Message = {"role": "assistant", "content": PROBE}
        last = _behind_probe(self._tried(answer))
        within = _behind_probe(self._tried(answer, {"role": "user", "content": "b"}))
        of_turn = _common_pieces(last, within)
        end = END.match(of_turn if of_turn.strip() else last)
        assert end is not None, "it matches anything"
        return _Closing(end.group(), last[end.end() :])

    @cached_property
    def _header(self) -> str:
        """What the generation prompt adds to a conversation; nothing where the template has none."""
        without, prompt = self._tried() or "", self._tried(prompt=True) or ""
        return prompt[num_common(without, prompt) :] if prompt != without else ""

    @cached_property
    def _lead(self) -> str:
        """What stands between the header and the words of an answer, which generation has to write."""
        text = self._tried({"role": "assistant", "content": PROBE}) or ""
        before = text[: max(text.rfind(PROBE), 0)]
        return before[self._behind_header(before) :]

    def _tried(self, *more: Message, prompt: bool = False) -> str | None:
        """Returns the text of a short conversation, in the first form that the template takes; None if it takes
        none."""
        user = {"role": "user", "content": "a"}
        for opening in ([user], [{"role": "system", "content": "a"}, user]):
            try:
                return self._renderer.text([*opening, *more], None, prompt)
            except ScaleupError:
                continue
        return None


def _of_tools(tokenizer: PreTrainedTokenizerBase) -> ChatTemplate | None:
    """Returns the template that a tokenizer of several uses where there are tools, if that is one of its own."""
    named = tokenizer.chat_template
    if not isinstance(named, dict) or "tool_use" not in named or named["tool_use"] == named.get("default"):
        return None
    alone = copy(tokenizer)
    alone.chat_template = named["tool_use"]
    return ChatTemplate(alone)


def _behind_probe(text: str | None) -> str:
    return text[text.rfind(PROBE) + len(PROBE) :] if text and PROBE in text else ""


def _common_pieces(one: str, other: str) -> str:
    """Returns the markers, line breaks and words that both texts begin with, each whole."""
    pairs = zip(PIECE.findall(one), PIECE.findall(other), strict=False)
    return "".join(piece for piece, _ in takewhile(lambda pair: pair[0] == pair[1], pairs))


def _last_marker(text: str) -> str:
    """Returns the marker that a text ends with; the text where it ends with none."""
    found = LAST_MARKER.search(text)
    return found[0] if found else text


def answer_ends(tokenizer: PreTrainedTokenizerBase, model: Any = None) -> list[int]:
    """Returns the tokens that end an answer: the tokenizer's eos, what ends a turn in its chat template, and those of
    the model's own generation config."""
    own = model.generation_config.eos_token_id if model is not None and model.generation_config else None
    ends = {tokenizer.eos_token_id, *(own if isinstance(own, list) else [own])}
    if tokenizer.chat_template:
        ends.update(ChatTemplate(tokenizer).end_ids)
    return sorted(ends - {None})
