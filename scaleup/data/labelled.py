"""Texts with a class -> token lists -> batches for a classifier."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch

from scaleup.config.data import DataConfig, SourceConfig
from scaleup.data.collate import Batch, Collator, has_padding, pad
from scaleup.data.tokenization import IGNORE, LabelledTokens, TargetTokens, TokenRow
from scaleup.data.too_long import is_dropped
from scaleup.errors import ScaleupError
from scaleup.records.examples import labelled_maker, row_format
from scaleup.records.labels import Target, Targets


class Read(Protocol):
    """How a classifier reads texts (models/scoring.py: Reader)."""

    def ids(self, pairs: Sequence[tuple[str, str]]) -> list[list[int]]:
        """(before, text) -> token ids, whole."""

    def cut(self, ids: list[int]) -> list[int]:
        """To the most that the model reads."""

    def recipe(self) -> dict[str, Any]:
        """What the ids of a text follow from."""


@dataclass(frozen=True)
class LabelledEncoder:
    """Tokenizes texts as the classifier reads them, under `data`'s rules; `targets` say what a row's label is."""

    reader: Read
    targets: Targets
    data: DataConfig
    left_out: Counter[str] = field(default_factory=Counter)
    """Rows of those made so far that nothing can be learned from, by the reason."""
    task: str = "sequence_classification"

    def recipe(self) -> dict[str, Any]:
        return {
            "reads": "labels",
            "names": list(self.targets.names),
            "problem": self.targets.problem,
            **self.reader.recipe(),
        }

    def maker(self, source: SourceConfig) -> Callable[[Mapping[str, Any], int], list[Any]]:
        """Raises ScaleupError for a label that the classifier does not have."""
        make, column = labelled_maker(self.data, source), row_format(self.data, source).label
        assert column is not None, "the maker has looked at it"

        def labelled(values: Mapping[str, Any], index: int) -> list[Any]:
            example = make(values, index)
            target = self.targets.of(example.label)
            if target is None:
                raise ScaleupError([self.targets.fault(column, example.label)])
            return [(example.text, target)]

        return labelled

    def __call__(self, examples: Sequence[tuple[str, Target]]) -> list[LabelledTokens | TargetTokens | None]:
        """None for a text that is too long where such rows are dropped."""
        ids = self.reader.ids([("", text) for text, _ in examples]) if examples else []
        return [self._row(row, target) for row, (_, target) in zip(ids, examples, strict=True)]

    def _row(self, ids: list[int], target: Target) -> LabelledTokens | TargetTokens | None:
        if is_dropped(len(ids), self.data, self.left_out):
            return None
        input_ids = np.asarray(self.reader.cut(ids), np.int32)
        if isinstance(target, int):
            return LabelledTokens(input_ids, target)
        return TargetTokens(input_ids, np.asarray(target, np.float32))


def labelled_collator(pad_id: int, filler_id: int, num_targets: int | None = None) -> Collator:
    """B texts padded on the right; `labels` (B) are their classes, IGNORE for a filler, which is the one token
    `filler_id`; or, if so many are given, (B, num_targets) are their numbers, NaN for a filler."""
    filler: LabelledTokens | TargetTokens = LabelledTokens(np.full(1, filler_id, np.int32), IGNORE)
    if num_targets is not None:
        filler = TargetTokens(filler.input_ids, np.full(num_targets, np.nan, np.float32))

    def collate(rows: Sequence[TokenRow]) -> Batch:
        real = [row for row in rows if isinstance(row, LabelledTokens | TargetTokens)]
        texts = [row if isinstance(row, LabelledTokens | TargetTokens) else filler for row in rows]
        ids, mask = pad([text.input_ids for text in texts], pad_id)
        labels = torch.from_numpy(np.stack([np.asarray(text.label) for text in texts]))
        inputs = {"input_ids": ids, "attention_mask": mask}
        num_tokens = sum(len(row.input_ids) for row in real)
        return Batch(inputs, labels, len(real), num_tokens, is_padded=has_padding(mask))

    return collate
