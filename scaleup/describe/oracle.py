"""An example of a row goes in; what a plain tokenizer has a model read and learn of it comes out: the oracle that
`scaleup verify` holds our own tokenization to.

It knows nothing of `scaleup.data`, and is as simple as can be: a text is tokenized at once, what follows the prompt is
learned, an answer is what its template marks as one, or else what the conversation has more than the one before it. Of
some rows that says nothing: a token spans the end of the prompt, a template shows an answer otherwise once more
follows, a tokenizer trims spaces that are tokens."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import zip_longest
from typing import Any

from scaleup.config.data import DataConfig
from scaleup.records.chats import Chat
from scaleup.records.examples import Example, PlainText, PromptCompletion

Row = tuple[list[int], list[int]]
"""Holds token ids, and labels as Transformers takes them: -100 is not learned."""
IGNORE = -100
MARKS = re.compile(r"\{%-?\s*generation\b")


class Unknown(Exception):
    """Tells that the oracle has nothing to say of a row."""


def oracle(tokenizer: Any, example: Example, data: DataConfig, task: str) -> Row | None:
    """Returns what of a row is read and learned; None where it is too long and left out. Raises Unknown."""
    if task == "seq2seq_lm":
        return _of_pair(tokenizer, example, data)
    if isinstance(example, Chat):
        ids, learned = _of_chat(tokenizer, example, data)
    elif isinstance(example, PlainText):
        ids = _ended(tokenizer, _begun(tokenizer, example.text))
        learned = [True] * len(ids)
    else:
        start, whole = (_begun(tokenizer, text) for text in (example.prompt, example.prompt + example.completion))
        if whole[: len(start)] != start:
            raise Unknown
        ids = _ended(tokenizer, whole)
        learned = [not data.completion_only_loss or place >= len(start) for place in range(len(ids))]
    if len(ids) > data.max_length and data.too_long == "drop":
        return None
    return as_causal(ids[: data.max_length], learned[: data.max_length])


def as_causal(ids: list[int], learned: Sequence[bool]) -> Row | None:
    """Returns a causal model's row; None where nothing is learned. Nothing predicts a first token, so none is
    learned."""
    labels = [token if each and place else IGNORE for place, (token, each) in enumerate(zip(ids, learned, strict=True))]
    return None if set(labels) <= {IGNORE} else (ids, labels)


def num_differing(ours: Row | None, theirs: Row | None) -> int:
    """Returns at how many places of a row something else is read, and at how many something else is learned."""
    both = zip(ours or ([], []), theirs or ([], []), strict=True)
    return sum(one != other for mine, true in both for one, other in zip_longest(mine, true))


def _begun(tokenizer: Any, text: str) -> list[int]:
    """Returns a text as plain Transformers reads it, with one token that begins it, and none that ends it."""
    whole, own = (list(tokenizer(text, add_special_tokens=adds)["input_ids"]) for adds in (True, False))
    begin = next((place for place in range(len(whole)) if whole[place : place + len(own)] == own), None)
    if begin is None:
        raise Unknown
    ids, bos = whole[: begin + len(own)], tokenizer.bos_token_id
    return ids[1:] if bos is not None and ids[:2] == [bos, bos] else ids


def _ended(tokenizer: Any, ids: list[int]) -> list[int]:
    eos = tokenizer.eos_token_id
    return ids if eos is None or ids[-1:] == [eos] else [*ids, eos]


def _of_pair(tokenizer: Any, example: Example, data: DataConfig) -> Row | None:
    if not isinstance(example, PromptCompletion):
        raise Unknown
    source, target = tokenizer(example.prompt)["input_ids"], tokenizer(text_target=example.completion)["input_ids"]
    if max(len(source), len(target)) > data.max_length:
        if data.too_long == "drop":
            return None
        source = tokenizer(example.prompt, truncation=True, max_length=data.max_length)["input_ids"]
    return list(source), list(target)[: data.max_length]


def _of_chat(tokenizer: Any, chat: Chat, data: DataConfig) -> tuple[list[int], list[bool]]:
    """Returns the ids of a conversation up to its last answer, and which of them are learned."""
    learns_all = data.train_on == "all" or not data.completion_only_loss
    if chat.unlearned or not chat.answers or not tokenizer.is_fast:
        raise Unknown
    messages = chat.messages if learns_all else chat.messages[: chat.answers[-1] + 1]
    text = _shown(tokenizer, chat, messages)
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    ids, offsets = list(encoded["input_ids"]), list(encoded["offset_mapping"])
    if learns_all:
        return ids, [True] * len(ids)
    answers = chat.answers[-1:] if data.train_on == "last" else chat.answers
    if MARKS.search(tokenizer.chat_template) and not chat.given:
        mask = _marked(tokenizer, chat, messages)
        if len(mask) != len(ids):
            raise Unknown
        return ids, _last_run(mask) if data.train_on == "last" else mask
    if any(first == last for first, last in offsets):  # the tokenizer trims spaces, and does not tell where one stands
        raise Unknown
    spans = [_span(tokenizer, chat, text, turn) for turn in answers]
    swallowing = {token for token, how in tokenizer.added_tokens_decoder.items() if how.lstrip or how.rstrip}
    if swallowing & set(ids):  # a space beside such a token is its own by the offsets, and the answer's by the text
        raise Unknown
    return ids, [any(first < end and last > start for start, end in spans) for first, last in offsets]


def _shown(tokenizer: Any, chat: Chat, messages: Sequence[Any], **options: Any) -> str:
    try:
        return str(tokenizer.apply_chat_template(list(messages), chat.tools, tokenize=False, **options))
    except Exception as error:  # templates raise what they like
        raise Unknown from error


def _marked(tokenizer: Any, chat: Chat, messages: Sequence[Any]) -> list[bool]:
    told = tokenizer.apply_chat_template(
        list(messages), chat.tools, return_dict=True, return_assistant_tokens_mask=True
    )
    return [bool(each) for each in told["assistant_masks"]]


def _last_run(mask: Sequence[bool]) -> list[bool]:
    """Returns only the last of the stretches that a mask has."""
    end = max((place for place, each in enumerate(mask) if each), default=-1)
    start = end
    while start > 0 and mask[start - 1]:
        start -= 1
    return [bool(each) and start <= place <= end for place, each in enumerate(mask)]


def _span(tokenizer: Any, chat: Chat, text: str, turn: int) -> tuple[int, int]:
    """Returns from where to where an answer stands in a conversation: behind what generation starts from, to its end.
    Raises Unknown where the template shows either otherwise within the conversation."""
    if turn == 0:
        raise Unknown
    before = _shown(tokenizer, chat, chat.messages[:turn], add_generation_prompt=True)
    through = _shown(tokenizer, chat, chat.messages[: turn + 1])
    if not (through.startswith(before) and text.startswith(through)):
        raise Unknown
    return len(before), len(through)
