"""Text goes in, and comes out as token ids that know which characters they stand for; and ids go back to text.

The one way from text to tokens: prompts, completions, chats and what a reward model reads are all tokenized here, so
that no stage sees other tokens of a text than another one. Of a text of which only the first tokens are wanted no more
is tokenized than these follow from, where that can be told."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import takewhile
from typing import Any

from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from scaleup.data.cuts import Cuts

Span = tuple[int, int]
"""The characters from the first number up to the second."""
MAX_CONTEXT = 8
"""Tokens of a prompt that its answer is decoded with: enough for whatever a decoder does at a word's border."""
REPLACEMENT = "\ufffd"
"""What is decoded of bytes that are no character."""
CHARACTERS_PER_TOKEN = 16
"""Is how long a beginning is tried for each token that is wanted of a text. Words are shorter."""
BESIDE = 256
"""Characters on either side of a place that are tokenized to see what spans it."""
CONTEXTS = ("\n", "a", ":", ".")
"""Texts that a piece of text is tokenized behind, to see it as the continuation of another."""


@dataclass(frozen=True)
class TextEncoder:
    """Tokenizes texts with one tokenizer, and decodes what continues them."""

    tokenizer: PreTrainedTokenizerBase
    is_target: bool = False
    """Tokenizes what an encoder-decoder model is to say: some of their tokenizers begin and end that otherwise."""

    def encode(self, texts: Sequence[str], special: bool = True, most: int | None = None) -> list[list[int]]:
        """Returns the ids (S) of each text as a whole. With the special tokens that the tokenizer begins a text with if
        they are wanted: once, also where the text begins with them. Those that it ends a text with are left out, so
        that the text can be continued.

        `most`: of a text of more ids than that, as many of the first ones, and one more at least, are enough."""
        return [ids for _, ids in self._first(texts, special, most)]

    def ended(self, texts: Sequence[str], most: int | None = None) -> list[list[int]]:
        """Returns the ids (S) of each text with the special tokens that the tokenizer begins and ends it with, once.
        `most`: as `encode` takes it."""
        rows = self.encode(texts, most=most)
        return [ids if self.last == ids[len(ids) - len(self.last) :] else ids + self.last for ids in rows]

    def masked(
        self, texts: Sequence[tuple[str, Sequence[Span]]], most: int | None = None
    ) -> list[tuple[list[int], list[bool]]]:
        """Returns the ids (S) of each text without the tokenizer's special tokens, and of each token whether any
        character of it lies in one of the text's spans (S). Transformers' mask of the assistant's tokens is the same:
        a token over the border counts. But the space that a marker swallows beside it is none of its characters: a
        header is not learned because the answer begins with a space. `most`: as `encode` takes it."""
        if not texts:
            return []
        if not self.tokenizer.is_fast:
            return [self._masked_by_prefixes(text, spans) for text, spans in texts]
        begun = [self._beginning(text, most) for text, _ in texts]
        encoded = self._tokenized(begun, add_special_tokens=False, return_offsets_mapping=True)
        rows = zip(encoded["input_ids"], encoded["offset_mapping"], begun, texts, strict=True)
        return [
            (ids, [_is_within(token, spans) for token in self._own_characters(text, ids, offsets)])
            if begin is text or len(ids) > (most or 0)
            else self.masked([(text, spans)])[0]
            for ids, offsets, begin, (text, spans) in rows
        ]

    def continued(self, pairs: Sequence[tuple[str, str]], most: int | None = None) -> list[tuple[list[int], list[int]]]:
        """Returns the ids of each prompt, which are those that generation starts from, and of the completion behind it.

        Both are tokenized as one text. Where a token of that spans the border, it is split there. `most`: of a pair of
        more ids than that, as many of the first ones, and one more at least, are enough."""
        starts = self.encode([prompt for prompt, _ in pairs], most=most)
        is_full = [most is not None and len(start) > most for start in starts]
        texts = ["" if full else "".join(pair) for full, pair in zip(is_full, pairs, strict=True)]
        rows = []
        for start, full, (text, whole), (prompt, _) in zip(
            starts, is_full, self._first(texts, True, most), pairs, strict=True
        ):
            if full or whole[: len(start)] == start:
                rows.append((start, [] if full else whole[len(start) :]))
            else:
                rows.append((start, self._behind(start, whole, text[len(prompt) :])))
        return rows

    def spans_end(self, prompt: str, whole: str, special: bool = True) -> bool:
        """Returns whether the tokens of a text, which is to begin with a prompt, begin with other tokens than those of
        the prompt."""
        if whole.startswith(prompt):  # what is far from the border is the same
            first, last = (
                self._cuts.before(prompt, len(prompt) - BESIDE),
                self._cuts.behind(whole, len(prompt) + BESIDE),
            )
            prompt, whole, special = prompt[first:], whole[first:last], special and not first
        start, row = self.encode([prompt, whole], special)
        return row[: len(start)] != start

    def with_eos(self, ids: list[int]) -> list[int]:
        """Returns the ids with the tokenizer's eos at their end, once, if it has one."""
        eos = self.tokenizer.eos_token_id
        return ids if eos is None or ids[-1:] == [eos] else [*ids, eos]

    def ending(self, ids: Sequence[int], limit: int) -> list[int]:
        """Returns at most `limit` ids of a text: the last ones, behind the special tokens that it begins with, which
        are the tokenizer's, or the bos that a chat template wrote."""
        if len(ids) <= limit:
            return list(ids)
        begins = (self.first, [self.tokenizer.bos_token_id])
        start = next((first for first in begins if list(ids[: len(first)]) == first != []), [])
        start = start if len(start) < limit else []
        return [*start, *ids[len(ids) - limit + len(start) :]]

    def answers(self, prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]]) -> list[str]:
        """Returns the text that each answer adds to its prompt, without special tokens. It is decoded behind the
        prompt's last tokens: alone, many tokenizers would lose its first space."""
        behind = [self._context(prompt) for prompt in prompts]
        starts = self._decoded(behind)
        wholes = self._decoded([[*context, *answer] for context, answer in zip(behind, answers, strict=True)])
        alone = self._decoded(answers)
        return [
            whole[len(start) :].removeprefix(self._own_space(prompt)) if whole.startswith(start) else text
            for prompt, start, whole, text in zip(prompts, starts, wholes, alone, strict=True)
        ]

    @cached_property
    def first(self) -> list[int]:
        """The special tokens that the tokenizer begins every text with."""
        return self._special[0]

    @cached_property
    def last(self) -> list[int]:
        """The special tokens that the tokenizer ends every text with."""
        return self._special[1]

    @cached_property
    def _special(self) -> tuple[list[int], list[int]]:
        encoded = self._tokenized(["a"], return_special_tokens_mask=True)
        [ids], [mask] = encoded["input_ids"], encoded["special_tokens_mask"]
        num_first = len(list(takewhile(bool, mask)))
        num_last = len(list(takewhile(bool, reversed(mask[num_first:]))))
        return ids[:num_first], ids[len(ids) - num_last :]

    def _tokenized(self, texts: list[str], **options: Any) -> Any:
        which = "text_target" if self.is_target else "text"
        options["verbose"] = False  # whether a text has more tokens than a model has positions is the plan's to say
        return self.tokenizer(**{which: texts}, **options)

    def _ids(self, texts: list[str], special: bool) -> list[list[int]]:
        """Returns the ids of texts as the tokenizer gives them. Where nothing of Transformers' own comes in between,
        the library beneath is asked for ids alone, which takes half the time."""
        if self.is_target or not _is_plain(self.tokenizer):
            return list(self._tokenized(texts, add_special_tokens=special)["input_ids"])
        backend: Any = self.tokenizer.backend_tokenizer
        if backend.padding or backend.truncation:  # an earlier call of somebody else
            backend.no_padding()
            backend.no_truncation()
        backend.encode_special_tokens = self.tokenizer.split_special_tokens
        return [each.ids for each in backend.encode_batch_fast(texts, add_special_tokens=special)]

    def _first(self, texts: Sequence[str], special: bool, most: int | None) -> list[tuple[str, list[int]]]:
        """Returns what `encode` does, and of which beginning of each text these are the ids."""
        begun = [self._beginning(text, most) for text in texts]
        rows = self._ids(begun, special) if texts else []
        rows = [each[slice(*self._once(each))] if special else each for each in rows]
        return [
            (begin, ids) if begin is text or len(ids) > (most or 0) else self._first([text], special, None)[0]
            for ids, begin, text in zip(rows, begun, texts, strict=True)
        ]

    def _beginning(self, text: str, most: int | None) -> str:
        """Returns a text, or a beginning of it that has the same first tokens, probably more than `most`."""
        if most is None or len(text) <= most * CHARACTERS_PER_TOKEN:
            return text
        end = self._cuts.behind(text, most * CHARACTERS_PER_TOKEN)
        return text[:end] if end < len(text) else text

    @cached_property
    def _cuts(self) -> Cuts:
        return Cuts(self.tokenizer)

    def _once(self, ids: list[int]) -> tuple[int, int]:
        """Returns from where to where ids have the special tokens of a text's beginning once, and none of its end."""
        first, last = self.first, self.last
        is_doubled = first and ids[len(first) : 2 * len(first)] == first
        ends = last and ids[len(ids) - len(last) :] == last
        return len(first) if is_doubled else 0, len(ids) - len(last) if ends else len(ids)

    def _own_characters(self, text: str, ids: Sequence[int], offsets: Sequence[Span]) -> list[Span]:
        return [
            _stripped(text, span) if token in self._swallowing else span
            for token, span in zip(ids, offsets, strict=True)
        ]

    @cached_property
    def _swallowing(self) -> set[int]:
        added = self.tokenizer.added_tokens_decoder.items()
        return {token for token, how in added if how.lstrip or how.rstrip}

    def _masked_by_prefixes(self, text: str, spans: Sequence[Span]) -> tuple[list[int], list[bool]]:
        """Does what `masked` does with a tokenizer that does not tell its tokens' characters: a place in the text is
        where the tokens of the text up to there are the first of all."""
        [ids] = self.encode([text], special=False)
        places = [place for span in spans for place in span]
        before = self.encode([text[:place] for place in places], special=False)
        at = [num_common(part, ids) for part in before]
        ends = [  # a token over the border is within, but for a marker that swallows space
            end + (end < len(part) and ids[end] not in self._swallowing)
            for end, part in zip(at[1::2], before[1::2], strict=True)
        ]
        runs = list(zip(at[::2], ends, strict=True))
        return ids, [any(start <= place < end for start, end in runs) for place in range(len(ids))]

    def _behind(self, start: list[int], whole: list[int], completion: str) -> list[int]:
        """Returns tokens of the completion that read, behind the prompt's own, as the whole does. A tokenizer that puts
        a space before any text would put one into the middle, so it is tried behind some short texts, and alone."""
        [wanted] = self._decoded([whole])
        tried: list[list[int]] = []
        for context in ("", *CONTEXTS):
            before, both = self.encode([context, context + completion], special=False)
            if context and both[: len(before)] != before:
                continue
            tried.append(both[len(before) :] if context else both)
            if self._decoded([[*start, *tried[-1]]]) == [wanted]:
                return tried[-1]
        return tried[0]

    def _context(self, prompt: Sequence[int]) -> list[int]:
        special = set(self.tokenizer.all_special_ids)
        context = [token for token in prompt[-MAX_CONTEXT:] if token not in special]
        while (shown := self._decoded([context])[0]).startswith(REPLACEMENT):  # the first bytes of a character are cut
            context = context[1:]
        return context if shown.strip() else self._neutral

    def _own_space(self, prompt: Sequence[int]) -> str:
        """Returns what decoding shows in front of an answer that is not in its text: many tokenizers put a space before
        a text's first word, and some before the one behind each special token too."""
        is_first = list(prompt) in ([], self.first)
        if not is_first and prompt[-1] not in self._added:
            return ""
        place = -1 if is_first else prompt[-1]
        if place not in self._own_spaces:
            before = [] if is_first else [place]
            ids = self.tokenizer("a" if is_first else f"{self._added[place]}a", add_special_tokens=False)["input_ids"]
            start, whole = self._decoded([[*self._neutral, *before], [*self._neutral, *ids]])
            is_behind = ids[: len(before)] == before and whole.startswith(start) and whole.endswith("a")
            self._own_spaces[place] = whole[len(start) : -1] if is_behind else ""
        return self._own_spaces[place]

    @cached_property
    def _own_spaces(self) -> dict[int, str]:
        return {}

    @cached_property
    def _added(self) -> dict[int, str]:
        unknown = self.tokenizer.unk_token_id  # a word like others, which the text does not show
        added = self.tokenizer.added_tokens_decoder.items()
        return {token: str(how) for token, how in added if token != unknown}

    @cached_property
    def _neutral(self) -> list[int]:
        return list(self.tokenizer("a", add_special_tokens=False)["input_ids"])

    def _decoded(self, rows: Sequence[Sequence[int]]) -> list[str]:
        texts: Any = self.tokenizer.batch_decode([list(row) for row in rows], skip_special_tokens=True)
        return list(texts)


def _is_plain(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Tells whether a tokenizer does with texts what all do that the library `tokenizers` works for."""
    kind, base = type(tokenizer), PreTrainedTokenizerFast
    return isinstance(tokenizer, base) and all(
        getattr(kind, name) is getattr(base, name)
        for name in ("__call__", "_encode_plus", "set_truncation_and_padding")
    )


def num_common(one: Sequence[Any], other: Sequence[Any]) -> int:
    """Returns how many of the first characters or ids of two are the same."""
    same, most = 0, min(len(one), len(other))
    while same < most:  # in halves: slices are compared a hundred times as fast as single characters
        middle = (same + most + 1) // 2
        if one[same:middle] == other[same:middle]:
            same = middle
        else:
            most = middle - 1
    return same


def _stripped(text: str, span: Span) -> Span:
    shown = text[slice(*span)]
    return span[1] - len(shown.lstrip()), span[0] + len(shown.rstrip())


def _is_within(token: Span, spans: Sequence[Span]) -> bool:
    """Tells whether a token has a character in one of the spans. One of spaces may be told as the place behind them."""
    first, end = token if token[0] < token[1] else (token[1] - 1, token[1])
    return any(first < stop and end > start for start, stop in spans)
