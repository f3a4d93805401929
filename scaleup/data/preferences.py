"""Pairs of responses go in; rows of a language model come out, of which the responses alone are learned from, and then
one batch, in which the chosen ones come before the rejected."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from scaleup.config.data import SourceConfig
from scaleup.data.collate import Batch, Collator
from scaleup.data.marks import Rendered
from scaleup.data.tokenization import FILLER, Encoder, PreferenceTokens, TokenRow, Tokens
from scaleup.data.too_long import TOO_LONG, UNLEARNED
from scaleup.records.chats import Chat
from scaleup.records.examples import Example, PromptCompletion
from scaleup.records.preferences import EMPTY, EQUAL, Preference, preference_maker


@dataclass(frozen=True)
class PreferenceEncoder:
    """Tokenizes preferences as `encoder` does prompts with one response. Both sides begin with the same prompt, and are
    cut at their end: what is left of the prompt is the same on both."""

    encoder: Encoder
    left_out: Counter[str] = field(default_factory=Counter)
    """Pairs of the rows made so far that nothing can be learned from, by the reason."""

    def __post_init__(self) -> None:
        data = self.encoder.data.model_copy(update={"completion_only_loss": True})
        object.__setattr__(self, "encoder", replace(self.encoder, data=data, left_out=Counter()))

    @property
    def task(self) -> str:
        return self.encoder.task

    def recipe(self) -> dict[str, Any]:
        return {**self.encoder.recipe(), "pairs": True}

    def maker(self, source: SourceConfig) -> Callable[[Mapping[str, Any], int], list[Preference]]:
        make = preference_maker(self.encoder.data, source)

        def pairs(values: Mapping[str, Any], index: int) -> list[Preference]:
            made = make(values, index)
            self.left_out.update(made.left_out)
            return made.pairs

        return pairs

    def __call__(self, examples: Sequence[Preference]) -> list[PreferenceTokens | None]:
        """None for a pair of which a response is empty, too long where such rows are dropped, or cut off with nothing
        left; and for one whose responses are the same to the model."""
        sides = [_side(pair.prompt, response) for pair in examples for response in (pair.chosen, pair.rejected)]
        rendered = [self._rendered(pair.prompt, side) for pair, side in self._chats(examples, sides)]
        rows = self.encoder(sides, rendered)
        return [
            self._row(pair, *both) for pair, both in zip(examples, zip(rows[::2], rows[1::2], strict=True), strict=True)
        ]

    def _chats(self, examples: Sequence[Preference], sides: Sequence[Example]) -> list[tuple[Preference, Chat]]:
        pairs = [pair for pair in examples for _ in range(2)]
        return [(pair, side) for pair, side in zip(pairs, sides, strict=True) if isinstance(side, Chat)]

    def _rendered(self, prompt: Any, whole: Chat) -> Rendered:
        """Returns a conversation of which no answer is learned that the prompt holds."""
        rendered = self.encoder.chat.conversation(whole, "assistant")
        if not any(message["role"] == "assistant" for message in prompt.messages):
            return rendered
        start = len(self.encoder.as_text(prompt))
        return replace(rendered, spans=tuple(span for span in rendered.spans if span[1] > start))

    def _row(self, pair: Preference, chosen: Tokens | None, rejected: Tokens | None) -> PreferenceTokens | None:
        if _is_empty(pair.chosen) or _is_empty(pair.rejected):
            self.left_out[EMPTY] += 1
        elif chosen is None or rejected is None:
            self.left_out[UNLEARNED if self.encoder.data.too_long == "truncate" else TOO_LONG] += 1
        elif chosen.input_ids.tolist() == rejected.input_ids.tolist() and chosen.labels.tolist() == (
            rejected.labels.tolist()
        ):
            self.left_out[EQUAL] += 1
        else:
            return PreferenceTokens(chosen, rejected)
        return None


def _side(prompt: Any, response: Any) -> Example:
    if isinstance(prompt, Chat):
        return Chat([*prompt.messages, *response], prompt.tools)
    return PromptCompletion(prompt, response)


def _is_empty(response: Any) -> bool:
    return isinstance(response, str) and not response.strip()


def cached_logps(of_rows: Sequence[np.ndarray | None]) -> torch.Tensor | None:
    """Returns what the reference says (2 B) of the first responses of B rows, then of the second; 0 for fillers, of
    which it is never asked. None where nothing is cached."""
    if all(logps is None for logps in of_rows):
        return None
    told = np.stack([np.zeros(2, np.float32) if logps is None else logps for logps in of_rows])
    return torch.from_numpy(told.T.flatten())


def preference_collator(collate: Collator) -> Collator:
    """Returns a collator of the 2 B rows of B pairs, the chosen ones first; `num_labels` counts the pairs. `collate` is
    that of the rows."""

    def collate_pairs(rows: Sequence[TokenRow]) -> Batch:
        pairs = [row if isinstance(row, PreferenceTokens) else PreferenceTokens(FILLER, FILLER) for row in rows]
        batch = collate([*(pair.chosen for pair in pairs), *(pair.rejected for pair in pairs)])
        batch = replace(batch, num_labels=sum(isinstance(row, PreferenceTokens) for row in rows))
        return replace(batch, reference_logps=cached_logps([pair.reference_logps for pair in pairs]))

    return collate_pairs
