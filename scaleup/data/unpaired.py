"""Prompts with a response that is desirable or not go in; rows of a language model come out, each beside the response
of another row, and then one batch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from scaleup.config.data import SourceConfig
from scaleup.data.collate import Batch, Collator
from scaleup.data.dataset import TrainingData
from scaleup.data.preferences import cached_logps
from scaleup.data.rows import Changed, Joined, Rows
from scaleup.data.tokenization import FILLER, IGNORE, Encoder, TokenRow, Tokens, UnpairedTokens
from scaleup.records.examples import UnpairedPreference, unpaired_maker


@dataclass(frozen=True)
class UnpairedEncoder:
    """Tokenizes prompts with a response as `encoder` does. The response alone is learned from."""

    encoder: Encoder

    def __post_init__(self) -> None:
        data = self.encoder.data.model_copy(update={"completion_only_loss": True, "train_on": "assistant"})
        object.__setattr__(self, "encoder", replace(self.encoder, data=data, left_out=Counter()))

    @property
    def task(self) -> str:
        return self.encoder.task

    @property
    def left_out(self) -> Counter[str]:
        return self.encoder.left_out

    def recipe(self) -> dict[str, Any]:
        return {**self.encoder.recipe(), "unpaired": True}

    def maker(self, source: SourceConfig) -> Callable[[Mapping[str, Any], int], list[UnpairedPreference]]:
        make = unpaired_maker(self.encoder.data, source)
        return lambda values, index: [make(values, index)]

    def __call__(self, examples: Sequence[UnpairedPreference]) -> list[UnpairedTokens | None]:
        """None for a row that is too long where such rows are dropped, or cut off with nothing left of its response."""
        rows = self.encoder([each.example for each in examples])
        return [
            None if row is None else UnpairedTokens(row, each.is_desirable)
            for row, each in zip(rows, examples, strict=True)
        ]


def with_mismatched(data: TrainingData, max_length: int) -> TrainingData:
    """Returns the data with another row's response in each row, from which KTO estimates how far the policy is from its
    reference: that of the row before it, of the first that of the last. So the estimate does not depend on how rows are
    put together (TRL takes the row before it in a micro-batch of rows that are not shuffled)."""
    sources = data.whole_sources()
    whole = Joined([source.rows for source in sources])
    first = 0
    for source in sources:
        source.rows = _mismatched(source.rows, whole, first, max_length, data.task)
        first += len(source.rows)
    return replace(data, validation=_mismatched(data.validation, data.validation, 0, max_length, data.task))


def _mismatched(rows: Rows, whole: Rows, first: int, max_length: int, task: str) -> Rows:
    """Returns rows, which begin at a place of all, with the response of the one before."""

    def change(row: UnpairedTokens, place: int) -> UnpairedTokens:
        other = whole[first + place - 1].response
        return replace(row, mismatched=spliced(row.response, other, max_length, task))

    return Changed(rows, change)


def spliced(row: Tokens, other: Tokens, max_length: int, task: str) -> Tokens:
    """Returns a row's prompt with another's response, cut at its end."""
    if task == "seq2seq_lm":
        return Tokens(row.input_ids, other.labels)
    starts = [int(np.argmax(each.labels != IGNORE)) for each in (row, other)]
    ids, labels = (
        np.concatenate([getattr(row, part)[: starts[0]], getattr(other, part)[starts[1] :]])[:max_length]
        for part in ("input_ids", "labels")
    )
    return Tokens(ids, labels)


@dataclass(frozen=True)
class UnpairedBatch(Batch):
    """Holds B rows, of which some are desirable, and their prompts with the responses of other rows."""

    is_desirable: torch.Tensor = field(default_factory=lambda: torch.empty(0))
    """Holds a truth value for each row (B)."""
    mismatched: Batch | None = None
    kl: float = 0.0
    """Is how far the policy is from its reference on the mismatched rows of the whole step, in nats a response."""

    def to(self, device: torch.device) -> UnpairedBatch:
        moved = super().to(device)
        assert isinstance(moved, UnpairedBatch) and self.mismatched is not None
        is_desirable = self.is_desirable.to(device, non_blocking=True)
        return replace(moved, is_desirable=is_desirable, mismatched=self.mismatched.to(device))


def unpaired_collator(collate: Collator) -> Collator:
    """Returns a collator of B rows, of which `num_labels` counts those that are no fillers. `collate` is that of
    language models."""
    filler = UnpairedTokens(FILLER, False, FILLER)

    def collate_unpaired(rows: Sequence[TokenRow]) -> UnpairedBatch:
        real = [row if isinstance(row, UnpairedTokens) else filler for row in rows]
        batch, mismatched = (collate([row.responses[side] for row in real]) for side in range(2))
        if (logps := cached_logps([row.reference_logps for row in real])) is not None:
            own, others = logps.view(2, -1)
            batch, mismatched = replace(batch, reference_logps=own), replace(mismatched, reference_logps=others)
        return UnpairedBatch(
            **{**vars(batch), "num_labels": sum(row is not filler for row in real)},
            is_desirable=torch.tensor([row.is_desirable for row in real]),
            mismatched=mismatched,
        )

    return collate_unpaired
