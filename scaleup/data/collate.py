"""Token lists go in; a Batch comes out: padded on the right, masks by position, labels beside them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from scaleup.data.tokenization import FILLER, IGNORE, Tokens


class TopK:
    """Holds a teacher's distribution at N labelled positions, row by row: its k likeliest tokens, all others as one
    event.

    No dataclass: engines look for tensors in these, and round what a model is called with to the run's precision."""

    def __init__(self, ids: torch.Tensor, log_probs: torch.Tensor) -> None:
        self.ids = ids
        """Holds token ids (N, k), int32, the likeliest first."""
        self.log_probs = log_probs
        """Holds natural logarithms of probabilities (N, k + 1) in float32, the last that of all others together: -inf
        where there are none."""

    def __getitem__(self, rows: slice) -> TopK:
        return TopK(self.ids[rows], self.log_probs[rows])

    def to(self, device: torch.device) -> TopK:
        return TopK(self.ids.to(device, non_blocking=True), self.log_probs.to(device, non_blocking=True))


class Places:
    """Holds where the N labelled tokens of (B, S) stand, or the labelled rows of (B,). The host knows it when it makes
    a batch: an index of booleans would have it wait for the device, to hear how many are true.

    No dataclass: engines look for tensors in these."""

    def __init__(self, flat: torch.Tensor, columns: torch.Tensor, width: int) -> None:
        self.flat = flat
        """Holds positions (N,) in the labels, laid out row by row."""
        self.columns = columns
        """Holds the columns (K,) in which some row has a label, in order; the first one where there is no label."""
        self.width = width
        """Is S; 0 where labels are (B,)."""

    @classmethod
    def of(cls, labels: torch.Tensor) -> Places:
        """Returns the places of labels (B, S) or (B,) that are on the CPU."""
        labelled = labels != IGNORE
        flat = labelled.flatten().nonzero().squeeze(1)
        if labels.ndim == 1:
            return cls(flat, flat.new_zeros(1), 0)
        columns = labelled.any(dim=0).nonzero().squeeze(1)
        return cls(flat, columns if len(columns) else columns.new_zeros(1), labels.shape[1])

    def to(self, device: torch.device) -> Places:
        flat, columns = (part.to(device, non_blocking=True) for part in (self.flat, self.columns))
        return Places(flat, columns, self.width)

    def behind(self, num_tokens: int) -> Places:
        """Returns the places where so many tokens stand before each row of (B, S)."""
        if not num_tokens:
            return self
        rows = self.flat // self.width + 1
        return Places(self.flat + num_tokens * rows, self.columns + num_tokens, self.width + num_tokens)

    def within_columns(self) -> Places:
        """Returns the places in (B, K): what is left of (B, S) without all columns but `columns`."""
        width = len(self.columns)
        flat = self.flat // self.width * width + torch.searchsorted(self.columns, self.flat % self.width)
        return Places(flat, torch.arange(width, device=flat.device), width)

    def select(self, values: torch.Tensor) -> torch.Tensor:
        """Returns (N, ...), of values (B, S, ...), or (B, ...) where labels are (B,)."""
        return (values.flatten(0, 1) if self.width else values).index_select(0, self.flat)


@dataclass(frozen=True)
class Batch:
    """Holds what one forward pass takes. Shapes: B rows, S tokens (T for the target of encoder-decoder models)."""

    inputs: dict[str, torch.Tensor]
    """Holds the model's own keyword arguments: input_ids and attention_mask (B, S); seq2seq also decoder_input_ids (B,
    T). Packed rows have position_ids (B, S) in place of the mask."""
    labels: torch.Tensor
    """Holds (B, S) or (B, T): the token that the logits of the same column must predict; IGNORE where there is no
    loss."""
    num_labels: float
    """Counts what the loss is a sum over: labelled tokens, or rows; of rows with weights the sum of these."""
    num_tokens: int
    """Counts the real tokens, without padding and fillers."""
    places: Places = None  # type: ignore[assignment]
    """Says where these labels are: `Places.of` them, made with the batch."""
    is_padded: bool | None = None
    """Tells whether some row has padding or, packed, several texts; None: the host does not know."""
    teacher_top_k: TopK | None = None
    """Holds the teacher's distribution at the labelled positions, where the teacher is cached."""
    reference_logps: torch.Tensor | None = None
    """Holds the reference's log-probabilities (B), summed over each row's labelled tokens, where it is cached."""

    def __post_init__(self) -> None:
        if self.places is None:
            object.__setattr__(self, "places", Places.of(self.labels))

    def to(self, device: torch.device) -> Batch:
        moved = {name: tensor.to(device, non_blocking=True) for name, tensor in self.inputs.items()}
        labels = self.labels.to(device, non_blocking=True)
        batch = replace(self, inputs=moved, labels=labels, places=self.places.to(device))
        if self.teacher_top_k is not None:
            batch = replace(batch, teacher_top_k=self.teacher_top_k.to(device))
        if self.reference_logps is not None:
            batch = replace(batch, reference_logps=self.reference_logps.to(device, non_blocking=True))
        return batch


@dataclass(frozen=True)
class WeighedBatch:
    """Holds rows beside those that a step is about: what `train_step` calls a batch. They do not count in what the
    step's loss is divided by."""

    rows: Batch
    weight: float
    """Is what a token's loss is multiplied by, so that the step's loss has a coefficient x the mean over these
    tokens."""
    num_labels: float = 0.0

    @property
    def num_tokens(self) -> int:
        return self.rows.num_tokens

    @property
    def is_padded(self) -> bool | None:
        return self.rows.is_padded

    def to(self, device: torch.device) -> WeighedBatch:
        return replace(self, rows=self.rows.to(device))


Collator = Callable[[Sequence[Any]], Batch]
"""Maps rows of the type that it is made for, and fillers -> a batch."""


def causal_collator(pad_id: int) -> Collator:
    def collate(rows: Sequence[Tokens]) -> Batch:
        input_ids, mask = pad([row.input_ids for row in rows], pad_id)
        labels, _ = pad([_shifted(row.labels) for row in rows], IGNORE)
        return _batch({"input_ids": input_ids, "attention_mask": mask}, labels, rows)

    return collate


def packed_collator(pad_id: int) -> Collator:
    """Return the collator of sequences of several rows. Without a mask, Transformers lets no token see beyond the place
    where positions start over; each padding token, at position 0, sees itself alone."""

    def collate(rows: Sequence[Tokens]) -> Batch:
        input_ids, _ = pad([row.input_ids for row in rows], pad_id)
        positions, _ = pad([_positions(row) for row in rows], 0)
        labels, _ = pad([_shifted(row.labels) for row in rows], IGNORE)
        starts_over = bool((np.diff(positions.numpy()) != 1).any())
        batch = _batch({"input_ids": input_ids, "position_ids": positions}, labels, rows)
        return replace(batch, is_padded=starts_over)

    return collate


def _positions(row: Tokens) -> np.ndarray:
    return np.arange(len(row.input_ids)) if row.position_ids is None else row.position_ids


def seq2seq_collator(pad_id: int, shift_right: Callable[[torch.Tensor], torch.Tensor]) -> Collator:
    """Return the collator of encoder-decoder models. `shift_right` is the model's own
    `prepare_decoder_input_ids_from_labels`."""

    def collate(rows: Sequence[Tokens]) -> Batch:
        input_ids, mask = pad([row.input_ids for row in rows], pad_id)
        labels, _ = pad([row.labels for row in rows], IGNORE)
        inputs = {"input_ids": input_ids, "attention_mask": mask, "decoder_input_ids": shift_right(labels)}
        return _batch(inputs, labels, rows)

    return collate


def top_k_collator(collate: Collator, top_k: int) -> Collator:
    """Return a collator that adds the rows' teacher_top_k; fillers have no labelled position, and none of it."""
    nothing = (np.empty((0, top_k), np.int32), np.empty((0, top_k + 1), np.float32))

    def collate_top_k(rows: Sequence[Tokens]) -> Batch:
        ids, log_probs = zip(*(row.teacher_top_k or nothing for row in rows), strict=True)
        teacher_top_k = TopK(torch.from_numpy(np.concatenate(ids)), torch.from_numpy(np.concatenate(log_probs)))
        return replace(collate(rows), teacher_top_k=teacher_top_k)

    return collate_top_k


def _shifted(labels: np.ndarray) -> np.ndarray:
    """Move the labels one to the left: the logits at t predict token t + 1."""
    return np.append(labels[1:], np.int32(IGNORE))


def pad(
    rows: Sequence[np.ndarray] | Sequence[Sequence[int]], value: int, left: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (B, S) int64 of B rows, filled up with `value` on the right or left, and the mask (B, S), 1 where there is
    no padding.

    Prompts of causal models are padded on the left, so that all answers start in one column; those of an encoder on the
    right, where T5's relative positions count from the start."""
    width = max(len(row) for row in rows)
    padded = np.full((len(rows), width), value, np.int64)
    mask = np.zeros((len(rows), width), np.int64)
    for index, row in enumerate(rows):
        place = slice(width - len(row), width) if left else slice(len(row))
        padded[index, place] = np.asarray(row)
        mask[index, place] = 1
    return torch.from_numpy(padded), torch.from_numpy(mask)


def _batch(inputs: dict[str, torch.Tensor], labels: torch.Tensor, rows: Sequence[Tokens]) -> Batch:
    real = [row for row in rows if row is not FILLER]
    num_tokens = sum(len(row.input_ids) for row in real)
    if "decoder_input_ids" in inputs:
        num_tokens += sum(len(row.labels) for row in real)
    places, is_padded = Places.of(labels), has_padding(inputs.get("attention_mask"))
    return Batch(inputs, labels, len(places.flat), num_tokens, places, is_padded)


def has_padding(*masks: torch.Tensor | None) -> bool | None:
    """Returns whether masks on the CPU, 1 where there is no padding, have any; None of no mask."""
    known = [bool((mask.numpy() == 0).any()) for mask in masks if mask is not None]
    return any(known) if known else None
