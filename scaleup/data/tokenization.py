"""Examples -> token lists, with the labels marked by position (never by comparing token ids: pad may be eos)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import Any, Protocol

import numpy as np
from transformers import PreTrainedTokenizerBase

from scaleup.config.data import DataConfig, SourceConfig
from scaleup.data.chat import ChatTemplate
from scaleup.data.marks import Rendered
from scaleup.data.rendering import use_template
from scaleup.data.text import TextEncoder
from scaleup.data.tokenizer_mark import tokenizer_mark
from scaleup.data.too_long import UNLEARNED, is_dropped
from scaleup.errors import ScaleupError
from scaleup.records.chats import Chat
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
class PreferenceTokens:
    """A language model's pair: one prompt with the chosen and with the rejected response, which alone have labels."""

    chosen: Tokens
    rejected: Tokens
    reference_logps: np.ndarray | None = None
    """Holds the reference's log-probabilities (2) of both responses, where they are cached."""

    @property
    def responses(self) -> tuple[Tokens, Tokens]:
        return self.chosen, self.rejected


@dataclass(frozen=True, eq=False)
class UnpairedTokens:
    """A language model's prompt with a response, which alone has labels, that is desirable or not."""

    response: Tokens
    is_desirable: bool
    mismatched: Tokens | None = None
    """Holds the prompt with another row's response: see data/unpaired.py."""
    reference_logps: np.ndarray | None = None
    """Holds the reference's log-probabilities (2) of both responses, where they are cached."""

    @property
    def responses(self) -> tuple[Tokens, Tokens]:
        assert self.mismatched is not None, "the run has told what it is"
        return self.response, self.mismatched


@dataclass(frozen=True, eq=False)
class LabelledTokens:
    """A classifier's row: the token ids of a text, and the number of its class."""

    input_ids: np.ndarray
    label: int


@dataclass(frozen=True, eq=False)
class TargetTokens:
    """A classifier's row of several labels, or of regression: the token ids of a text, and a number for each logit."""

    input_ids: np.ndarray
    label: np.ndarray


TokenRow = Tokens | PairTokens | PreferenceTokens | UnpairedTokens | LabelledTokens | TargetTokens

FILLER = Tokens(np.zeros(1, np.int32), np.full(1, IGNORE, np.int32))
"""Takes the place of a row that is not there, so that every rank has its share of a step. It has no loss."""


class RowEncoder(Protocol):
    """What makes token lists of a source's rows."""

    @property
    def task(self) -> str: ...

    @property
    def left_out(self) -> Counter[str]:
        """Counts the rows of those made so far that nothing can be learned from, by the reason."""

    def recipe(self) -> dict[str, Any]:
        """What the tokens of a row follow from, beside the row and the data section."""

    def maker(self, source: SourceConfig) -> Callable[[Mapping[str, Any], int], list[Any]]:
        """What makes the examples of a row's values and its index in the source. It raises ScaleupError."""

    def __call__(self, examples: Sequence[Any]) -> Sequence[Any]:
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
    """Returns the place of the assistant's last message."""
    return max(turn for turn, message in enumerate(chat.messages) if message["role"] == "assistant")


def opening(chat: Chat) -> Chat:
    """Returns the chat before the assistant's last message."""
    return replace(chat, messages=chat.messages[: last_answer(chat)])


def own_template(tokenizer: PreTrainedTokenizerBase, data: DataConfig) -> DataConfig:
    """Returns the data section by which a model reads conversations that `data.chat_template` is not meant for: with
    its own template, where it has one. Of several without a default it is the one that `data` names, if that is one."""
    own, named = tokenizer.chat_template, data.chat_template
    is_named = isinstance(own, dict) and "default" not in own and named in own
    return data if not own or is_named else data.model_copy(update={"chat_template": None})


@dataclass(frozen=True)
class Encoder:
    """Tokenizes examples for one task, with one tokenizer, under `data`'s rules. The tokenizer gets the chat template
    that `data` names, with which the model is saved then."""

    tokenizer: PreTrainedTokenizerBase
    task: str
    data: DataConfig
    left_out: Counter[str] = field(default_factory=Counter, compare=False)
    truncated: Counter[str] = field(default_factory=Counter, compare=False)
    """Counts the `prompts` that were longer than they may be."""

    def recipe(self) -> dict[str, Any]:
        """Returns what the tokens of a row follow from, beside the row and the data section."""
        return {"reads": self.task, "tokenizer": tokenizer_mark(self.tokenizer)}

    def __getstate__(self) -> dict[str, Any]:  # without what is made when it is needed, which cannot all be pickled
        return {each.name: getattr(self, each.name) for each in fields(self)}

    def __post_init__(self) -> None:
        use_template(self.tokenizer, self.data.chat_template)

    @cached_property
    def text(self) -> TextEncoder:
        """Tokenizes texts."""
        return TextEncoder(self.tokenizer)

    @cached_property
    def chat(self) -> ChatTemplate:
        """Renders conversations."""
        return ChatTemplate(self.tokenizer)

    def maker(self, source: SourceConfig) -> Callable[[Mapping[str, Any], int], list[Example]]:
        """Returns what makes the examples of a row's values and its index in the source."""
        make = example_maker(self.data, source)

        def made(values: Mapping[str, Any], index: int) -> list[Example]:
            example = make(values, index)
            return list(example.split()) if self.data.split_turns and isinstance(example, Chat) else [example]

        return made

    def __call__(self, examples: Sequence[Example], rendered: Sequence[Rendered] = ()) -> list[Tokens | None]:
        """Returns a row each; None where nothing is left to learn from (too long and dropped, or cut before its
        labels). `rendered`: the conversations among them, where they have been rendered already."""
        if not examples:
            return []
        if self.task == "seq2seq_lm":
            return self._seq2seq(examples)
        most = self.data.max_length
        both = [(e.prompt, e.completion) for e in examples if isinstance(e, PromptCompletion)]
        pairs = iter(self.text.continued(both, most))
        plain = iter(self.text.encode([e.text for e in examples if isinstance(e, PlainText)], most=most))
        chats = iter(self._chats(rendered or [self.rendered(e) for e in examples if isinstance(e, Chat)]))
        rows: list[Tokens | None] = []
        for example in examples:
            if isinstance(example, PromptCompletion):
                prompt, completion = next(pairs)
                completion = self.text.with_eos(completion)
                ids = prompt + completion
                learned = [not self.data.completion_only_loss] * len(prompt) + [True] * len(completion)
            elif isinstance(example, Chat):
                ids, learned = next(chats)
            else:
                ids = self.text.with_eos(next(plain))
                learned = [True] * len(ids)
            rows.append(self._cut(ids, learned))
        return rows

    def rendered(self, chat: Chat) -> Rendered:
        """Returns the text of a conversation, and what of it is learned."""
        return self.chat.conversation(chat, self.data.train_on if self.data.completion_only_loss else "all")

    def prompts(
        self, examples: Sequence[PromptCompletion | Chat | Opening], most: int | None = None
    ) -> list[list[int]]:
        """Returns the token ids that an answer to each example starts from: at most `max_length`, or `most` if that is
        less, of a longer one the special tokens that it begins with and its end. It counts these in `truncated`."""
        return self.prompt_ids([opening(e) if isinstance(e, Chat) else e.prompt for e in examples], most)

    def prompt_ids(self, prompts: Sequence[str | Chat], most: int | None = None) -> list[list[int]]:
        """Returns what `prompts` does, for texts and chats."""
        limit = min(self.data.max_length, most or self.data.max_length)
        whole = self.whole_prompt_ids(prompts, limit)
        self.truncated["prompts"] += sum(len(ids) > limit for ids in whole)
        if self.task == "seq2seq_lm":
            return [self._cut_source(ids, limit) for ids in whole]
        return [self.text.ending(tokens, limit) for tokens in whole]

    def whole_prompt_ids(self, prompts: Sequence[str | Chat], limit: int | None = None) -> list[list[int]]:
        """Returns the token ids of prompts as they are; of an encoder's that are longer than `limit`, more than that is
        enough."""
        if self.task == "seq2seq_lm":
            return self.text.ended([self.as_text(prompt) for prompt in prompts], limit)
        texts = iter(self.text.encode([prompt for prompt in prompts if isinstance(prompt, str)]))
        chats = [self.as_text(prompt) for prompt in prompts if isinstance(prompt, Chat)]
        of_chats = iter(self.text.encode(chats, special=False))
        return [next(of_chats) if isinstance(prompt, Chat) else next(texts) for prompt in prompts]

    def as_text(self, prompt: str | Chat) -> str:
        """Returns a prompt as the model reads it: of a chat, what the template makes of it."""
        return self.chat.prompt(prompt) if isinstance(prompt, Chat) else prompt

    def _chats(self, rendered: Sequence[Rendered]) -> Iterator[tuple[list[int], list[bool]]]:
        """Yields the ids of conversations, and which are learned: none of which a character is silent."""
        most = self.data.max_length
        masked = self.text.masked([(each.text, each.spans) for each in rendered], most)
        for each, (ids, learned) in zip(rendered, masked, strict=True):
            if each.silent:
                _, silent = self.text.masked([(each.text, each.silent)], most)[0]
                learned = [is_learned and not mute for is_learned, mute in zip(learned, silent, strict=True)]
            yield ids, learned

    def _cut(self, ids: list[int], learned: list[bool]) -> Tokens | None:
        if is_dropped(len(ids), self.data, self.left_out):
            return None
        input_ids = np.asarray(ids[: self.data.max_length], np.int32)
        labels = np.where(np.asarray(learned[: self.data.max_length]), input_ids, IGNORE).astype(np.int32)
        row = Tokens(input_ids, labels)
        if not (labels[1:] != IGNORE).any():
            self.left_out[UNLEARNED] += 1
            return None
        return row

    def _cut_source(self, ids: list[int], limit: int) -> list[int]:
        """Returns the ids of an encoder's text, cut at its end, of which the special tokens stay."""
        last = self.text.last
        return ids if len(ids) <= limit else ids[: limit - len(last)] + last

    def _seq2seq(self, examples: Sequence[Example]) -> list[Tokens | None]:
        pairs = []
        for example in examples:
            if not isinstance(example, PromptCompletion):
                kind = "text" if isinstance(example, PlainText) else "messages"
                raise ScaleupError.of(
                    f"data.{kind}", "an encoder-decoder model needs a prompt and a completion", "give both"
                )
            pairs.append((example.prompt, example.completion))
        limit, cuts = self.data.max_length, self.data.too_long == "truncate"
        prompts = [prompt for prompt, _ in pairs]
        sources = self.text.ended(prompts, limit)
        sources = [self._cut_source(ids, limit) for ids in sources] if cuts else sources
        targets = TextEncoder(self.tokenizer, is_target=True).ended([completion for _, completion in pairs], limit)
        if cuts:
            targets = [target[:limit] for target in targets]
        return [self._both(source, target) for source, target in zip(sources, targets, strict=True)]

    def _both(self, source: list[int], target: list[int]) -> Tokens | None:
        if is_dropped(max(len(source), len(target)), self.data, self.left_out):
            return None
        if not source or not target:
            self.left_out[UNLEARNED] += 1
            return None
        return Tokens(np.asarray(source, np.int32), np.asarray(target, np.int32))
