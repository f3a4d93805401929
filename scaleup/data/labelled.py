"""Texts with a class -> token lists -> batches for a classifier."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch

from scaleup.config.schema import DataConfig, SourceConfig
from scaleup.data.collate import Batch, Collator, has_padding, pad
from scaleup.data.tokenization import IGNORE, LabelledTokens, TokenRow
from scaleup.data.too_long import is_dropped
from scaleup.errors import ScaleupError
from scaleup.records.examples import labelled_maker, row_format
from scaleup.records.labels import Label, class_number, no_class


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
    """Tokenizes texts as the classifier reads them, under `data`'s rules; a row's label is its class's number."""

    reader: Read
    names: Sequence[str]
    """Of the classes, in the order of the logits."""
    data: DataConfig
    left_out: Counter[str] = field(default_factory=Counter)
    """Rows of those made so far that nothing can be learned from, by the reason."""
    task: str = "sequence_classification"

    def recipe(self) -> dict[str, Any]:
        return {"reads": "labels", "names": list(self.names), **self.reader.recipe()}

    def maker(self, source: SourceConfig) -> Callable[[Mapping[str, Any], int], list[Any]]:
        """Raises ScaleupError for a label that the classifier does not have."""
        make, column = labelled_maker(self.data, source), row_format(self.data, source).label
        assert column is not None, "the maker has looked at it"

        def labelled(values: Mapping[str, Any], index: int) -> list[Any]:
            example = make(values, index)
            return [(example.text, self._number(column, example.label))]

        return labelled

    def __call__(self, examples: Sequence[tuple[str, int]]) -> list[LabelledTokens | None]:
        """None for a text that is too long where such rows are dropped."""
        ids = self.reader.ids([("", text) for text, _ in examples]) if examples else []
        return [self._row(row, number) for row, (_, number) in zip(ids, examples, strict=True)]

    def _row(self, ids: list[int], number: int) -> LabelledTokens | None:
        if is_dropped(len(ids), self.data, self.left_out):
            return None
        return LabelledTokens(np.asarray(self.reader.cut(ids), np.int32), number)

    def _number(self, column: str, label: Label) -> int:
        number = class_number(label, self.names)
        if number is None:
            raise ScaleupError(no_class(column, label, self.names))
        return number


def labelled_collator(pad_id: int, filler_id: int) -> Collator:
    """B texts padded on the right; `labels` (B) are their classes, IGNORE for a filler, which is the one token
    `filler_id`."""
    filler = LabelledTokens(np.full(1, filler_id, np.int32), IGNORE)

    def collate(rows: Sequence[TokenRow]) -> Batch:
        real = [row for row in rows if isinstance(row, LabelledTokens)]
        texts = [row if isinstance(row, LabelledTokens) else filler for row in rows]
        ids, mask = pad([text.input_ids for text in texts], pad_id)
        classes = torch.tensor([text.label for text in texts])
        inputs = {"input_ids": ids, "attention_mask": mask}
        num_tokens = sum(len(row.input_ids) for row in real)
        return Batch(inputs, classes, len(real), num_tokens, is_padded=has_padding(mask))

    return collate
