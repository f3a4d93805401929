"""Pairs of responses -> token lists -> one batch, in which the chosen ones come before the rejected."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch

from scaleup.config.data import DataConfig, SourceConfig
from scaleup.data.collate import Batch, Collator, has_padding, pad
from scaleup.data.tokenization import PairTokens, TokenRow
from scaleup.data.too_long import is_dropped
from scaleup.records.preferences import Preference, preference_maker


class Read(Protocol):
    """How a reward model reads (models/scoring.py: Reader)."""

    def ids(self, pairs: Sequence[tuple[Any, Any]]) -> list[list[int]]:
        """(prompt, response) -> token ids, whole."""

    def cut(self, ids: list[int]) -> list[int]:
        """Token ids to at most `data.max_length`."""

    def recipe(self) -> dict[str, Any]:
        """What the ids of a text follow from."""


@dataclass(frozen=True)
class PairEncoder:
    """Tokenizes preferences as the model reads them, under `data`'s rules."""

    reader: Read
    data: DataConfig
    left_out: Counter[str] = field(default_factory=Counter)
    """Pairs of the rows made so far that nothing can be learned from, by the reason."""
    task: str = "sequence_classification"

    def recipe(self) -> dict[str, Any]:
        return {"reads": "pairs", **self.reader.recipe()}

    def maker(self, source: SourceConfig) -> Callable[[Mapping[str, Any], int], list[Preference]]:
        make = preference_maker(self.data, source)

        def pairs(values: Mapping[str, Any], index: int) -> list[Preference]:
            made = make(values, index)
            self.left_out.update(made.left_out)
            return made.pairs

        return pairs

    def __call__(self, examples: Sequence[Preference]) -> list[PairTokens | None]:
        """None for a pair that is too long where such rows are dropped, or whose texts are the same to the model."""
        texts = [(pair.prompt, response) for pair in examples for response in (pair.chosen, pair.rejected)]
        ids = self.reader.ids(texts) if texts else []
        rows = zip(examples, ids[::2], ids[1::2], strict=True)
        return [self._row(pair.margin, chosen, rejected) for pair, chosen, rejected in rows]

    def _row(self, margin: float, chosen: list[int], rejected: list[int]) -> PairTokens | None:
        if is_dropped(max(len(chosen), len(rejected)), self.data, self.left_out):
            return None
        chosen, rejected = self.reader.cut(chosen), self.reader.cut(rejected)
        if chosen == rejected:
            self.left_out["equal"] += 1
            return None
        return PairTokens(np.asarray(chosen, np.int32), np.asarray(rejected, np.int32), margin)


def pair_collator(pad_id: int, filler_id: int) -> Collator:
    """The 2 B texts of B pairs, the chosen ones first, padded on the right. `labels` (B) are the margins, NaN for a
    filler, which is two texts of the one token `filler_id`."""
    nothing = np.full(1, filler_id, np.int32)

    filler = PairTokens(nothing, nothing, float("nan"))

    def collate(rows: Sequence[TokenRow]) -> Batch:
        real = [row for row in rows if isinstance(row, PairTokens)]
        pairs = [row if isinstance(row, PairTokens) else filler for row in rows]
        input_ids, mask = pad([*(pair.chosen for pair in pairs), *(pair.rejected for pair in pairs)], pad_id)
        margins = torch.tensor([pair.margin for pair in pairs])
        num_tokens = sum(len(pair.chosen) + len(pair.rejected) for pair in real)
        inputs = {"input_ids": input_ids, "attention_mask": mask}
        return Batch(inputs, margins, len(real), num_tokens, is_padded=has_padding(mask))

    return collate
