"""Examples -> token lists, with the labels marked by position (never by comparing token ids: pad may be eos)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from scaleup.config.schema import DataConfig, SourceConfig
from scaleup.errors import ScaleupError
from scaleup.records.chats import Chat, Message
from scaleup.records.examples import Example, Opening, PlainText, PromptCompletion, example_maker

IGNORE = -100
"""The label of a position without loss, as in Transformers."""


@dataclass(frozen=True, eq=False)
class Tokens:
    """A language model's row: token ids (S) and labels, (S) of a causal model, where `labels[t]` belongs to
    `input_ids[t]` or is IGNORE, or (T) of an encoder-decoder model, the target."""

    input_ids: np.ndarray
    labels: np.ndarray
    position_ids: np.ndarray | None = None
    """Only in a packed sequence: where each token stands in its own row."""
    teacher_top_k: tuple[np.ndarray, np.ndarray] | None = None
    """Only where the teacher is cached: at the n labelled positions, the ids (n, k) of its likeliest tokens,
    and the log-probabilities (n, k + 1) of these and of all others together."""

    @property
    def num_labels(self) -> int:
        return int((self.labels != IGNORE).sum())

    def num_positions(self, task: str) -> int:
        """Positions with a loss. Nothing predicts a causal model's first token."""
        labels = self.labels if task == "seq2seq_lm" else self.labels[1:]
        return int((labels != IGNORE).sum())


@dataclass(frozen=True, eq=False)
class PairTokens:
    """A reward model's row: the texts with the chosen and with the rejected response, token ids each."""

    chosen: np.ndarray
    rejected: np.ndarray
    margin: float = 0.0
    """By how much the chosen one's score is to be higher."""


@dataclass(frozen=True, eq=False)
class LabelledTokens:
    """A classifier's row: the token ids of a text, and the number of its class."""

    input_ids: np.ndarray
    label: int


TokenRow = Tokens | PairTokens | LabelledTokens

FILLER = Tokens(np.zeros(1, np.int32), np.full(1, IGNORE, np.int32))
"""Takes the place of a row that is not there, so that every rank has its share of a step. It has no loss."""


class RowEncoder(Protocol):
    """What makes token lists of a source's rows."""

    @property
    def task(self) -> str: ...

    def maker(self, source: SourceConfig) -> Callable[[Mapping[str, Any], int], list[Any]]:
        """What makes the examples of a row's values and its index in the source. It raises ScaleupError."""

    def __call__(self, examples: Sequence[Any]) -> Sequence[TokenRow | None]:
        """A row each, all of one type; None where nothing is left to learn from."""


def join(rows: Sequence[Tokens]) -> Tokens:
    """Rows of a causal model as one packed sequence. No row's first token has a label: the row before knows nothing of
    it."""
    if len(rows) == 1:
        return rows[0]
    labels = np.concatenate([row.labels for row in rows])
    labels[np.cumsum([0, *(len(row.labels) for row in rows[:-1])])] = IGNORE
    positions = np.concatenate([np.arange(len(row.input_ids), dtype=np.int32) for row in rows])
    return Tokens(np.concatenate([row.input_ids for row in rows]), labels, positions)


def last_answer(chat: Chat) -> int:
    """The place of the assistant's last message."""
    return max(turn for turn, message in enumerate(chat.messages) if message["role"] == "assistant")


def opening(chat: Chat) -> Chat:
    """The chat before the assistant's last message."""
    return replace(chat, messages=chat.messages[: last_answer(chat)])


@dataclass(frozen=True)
class Encoder:
    """Tokenizes examples for one task, with one tokenizer, under `data`'s rules."""

    tokenizer: PreTrainedTokenizerBase
    task: str
    data: DataConfig

    def maker(self, source: SourceConfig) -> Callable[[Mapping[str, Any], int], list[Example]]:
        """What makes the example of a row's values and its index in the source."""
        make = example_maker(self.data, source)
        return lambda values, index: [make(values, index)]

    def __call__(self, examples: Sequence[Example]) -> list[Tokens | None]:
        """A row each; None where nothing is left to learn from (overlong and dropped, or cut before its labels)."""
        if not examples:
            return []
        if self.task == "seq2seq_lm":
            return self._seq2seq(examples)
        rows: list[Tokens | None] = []
        for segments in self._segments(examples):
            ids = [token for tokens, _ in segments for token in tokens]
            labelled = [on or not self.data.completion_only_loss for tokens, on in segments for _ in tokens]
            rows.append(self._cut(ids, labelled))
        return rows

    def prompts(self, examples: Sequence[PromptCompletion | Chat | Opening]) -> list[list[int]]:
        """The token ids that an answer to each example starts from, the last `max_length` of them."""
        return self.prompt_ids([opening(e) if isinstance(e, Chat) else e.prompt for e in examples])

    def prompt_ids(self, prompts: Sequence[str | Chat]) -> list[list[int]]:
        """As `prompts`, for texts and chats."""
        limit = self.data.max_length
        if self.task == "seq2seq_lm":
            texts = [self.as_text(prompt) for prompt in prompts]
            return self.tokenizer(texts, truncation=True, max_length=limit)["input_ids"]
        ids = [
            self._plain_ids(self._template(prompt.messages, add_generation_prompt=True))
            if isinstance(prompt, Chat)
            else next(self._ids([prompt]))
            for prompt in prompts
        ]
        return [tokens[-limit:] for tokens in ids]

    def as_text(self, prompt: str | Chat) -> str:
        """A prompt as the model reads it: of a chat, what the template makes of it."""
        return self._template(prompt.messages, add_generation_prompt=True) if isinstance(prompt, Chat) else prompt

    def _segments(self, examples: Sequence[Example]) -> list[list[tuple[list[int], bool]]]:
        """For each example its token runs, in order, and whether each is learned."""
        prompts = self._ids([e.prompt for e in examples if isinstance(e, PromptCompletion)])
        joint = self._ids([e.prompt + e.completion for e in examples if isinstance(e, PromptCompletion)])
        segments: list[list[tuple[list[int], bool]]] = []
        for example in examples:
            if isinstance(example, PromptCompletion):
                prompt, whole = next(prompts), next(joint)
                # Apart where a token spans the seam: generation starts from the prompt's own tokens.
                apart = whole[: len(prompt)] != prompt
                completion = self._plain_ids(example.completion) if apart else whole[len(prompt) :]
                segments.append([(prompt, False), (self._with_eos(completion), True)])
            elif isinstance(example, Chat):
                segments.append([(self._plain_ids(text), on) for text, on in self._chat_segments(example.messages)])
            else:
                [ids] = self._ids([example.text])
                segments.append([(self._with_eos(ids), True)])
        return segments

    def _ids(self, texts: list[str]):  # type: ignore[no-untyped-def]
        """Token ids with the tokenizer's own special tokens, but for the eos that some put at the end."""
        adds_eos = self.tokenizer("a")["input_ids"][-1:] == [self.tokenizer.eos_token_id]
        encoded = self.tokenizer(texts)["input_ids"] if texts else []
        return iter([ids[:-1] for ids in encoded] if adds_eos else encoded)

    def _plain_ids(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def _with_eos(self, ids: list[int]) -> list[int]:
        eos = self.tokenizer.eos_token_id
        return ids if eos is None or (ids and ids[-1] == eos) else [*ids, eos]

    def _chat_segments(self, messages: list[Message]) -> list[tuple[str, bool]]:
        """The chat template's text, split so that every assistant turn (with what ends it) stands by itself."""
        segments, done = [], ""
        for turn, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            before = self._template(messages[:turn], add_generation_prompt=True)
            after = self._template(messages[: turn + 1])
            if not before.startswith(done) or not after.startswith(before):
                raise ScaleupError.of(
                    "data.messages",
                    "the chat template rewrites earlier turns, so the assistant's words cannot be told apart",
                    "split such conversations into one row a turn",
                )
            segments += [(before[len(done) :], False), (after[len(before) :], True)]
            done = after
        return segments

    def _template(self, messages: list[Message], add_generation_prompt: bool = False) -> str:
        if not messages:
            return ""
        try:
            text = self.tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=add_generation_prompt
            )
        except TemplateError as error:  # templates refuse what they do not know, e.g. a system message
            roles = ", ".join(message["role"] for message in messages)
            what = f"the chat template refuses messages of {roles}: {error}"
            raise ScaleupError.of("data.messages", what, "use only turns that the model's template knows") from None
        assert isinstance(text, str)
        return text

    def _cut(self, ids: list[int], labelled: list[bool]) -> Tokens | None:
        if len(ids) > self.data.max_length and self.data.overlong == "drop":
            return None
        input_ids = np.asarray(ids[: self.data.max_length], np.int32)
        labels = np.where(labelled[: self.data.max_length], input_ids, IGNORE).astype(np.int32)
        row = Tokens(input_ids, labels)
        return row if (labels[1:] != IGNORE).any() else None

    def _seq2seq(self, examples: Sequence[Example]) -> list[Tokens | None]:
        pairs = []
        for example in examples:
            if not isinstance(example, PromptCompletion):
                kind = "text" if isinstance(example, PlainText) else "messages"
                raise ScaleupError.of(
                    f"data.{kind}", "an encoder-decoder model needs a prompt and a completion", "give both"
                )
            pairs.append((example.prompt, example.completion))
        limit = self.data.max_length
        sources = self.tokenizer([prompt for prompt, _ in pairs])["input_ids"]
        targets = self.tokenizer(text_target=[completion for _, completion in pairs])["input_ids"]
        if self.data.overlong == "truncate":
            sources = self.tokenizer([prompt for prompt, _ in pairs], truncation=True, max_length=limit)["input_ids"]
            targets = [target[:limit] for target in targets]
        return [
            Tokens(np.asarray(source, np.int32), np.asarray(target, np.int32))
            if source and target and max(len(source), len(target)) <= limit
            else None
            for source, target in zip(sources, targets, strict=True)
        ]
