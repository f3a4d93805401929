"""A classifier and a batch of texts go in; the loss summed over the texts comes out. The loop divides by the *global*
number of texts, or the sum of their classes' weights, so the split of a batch does not matter."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from scaleup.config.data import ClassProblem
from scaleup.config.stages.classify import ClassWeights
from scaleup.data.collate import Batch, Collator
from scaleup.data.tokenization import IGNORE, LabelledTokens, TargetTokens, TokenRow
from scaleup.errors import ScaleupError
from scaleup.models.classifier import classify
from scaleup.records.labels import Targets
from scaleup.train.step import Objective
from scaleup.train.tally import Tally


def class_objective(
    problem: ClassProblem, weights: torch.Tensor | None = None, tally: Tally | None = None
) -> Objective:
    """Return the objective of the loop: `class_losses`, summed over a batch, a float32 scalar. Where there are labels,
    `tally` gets the `accuracy`: the share of texts whose label is the likeliest, or whose labels are all as
    predicted."""

    def loss_sum(model: Any, batch: Batch) -> torch.Tensor:
        logits = classify(model, batch.inputs)
        if tally is not None and problem == "single_label":
            tally.add(len(batch.places.flat), accuracy=logits.argmax(dim=1) == batch.labels)
        elif tally is not None and problem == "multi_label":
            tally.add(batch.num_labels, accuracy=((logits > 0) == batch.labels).all(dim=1))
        return class_losses(logits, batch.labels, problem, weights).sum()

    return loss_sum


def class_losses(
    logits: torch.Tensor, labels: torch.Tensor, problem: ClassProblem, weights: torch.Tensor | None = None
) -> torch.Tensor:
    """Return the loss (B) of texts, in nats but for regression, from logits (B, L); fillers have none. Labels are
    classes (B), whose losses are multiplied by their weights (L); or numbers (B, L): then a text's loss is the mean
    over them, and `weights` multiply the part of labels that are there (torch's `pos_weight`)."""
    if problem == "single_label":
        return F.cross_entropy(logits, labels, weights, ignore_index=IGNORE, reduction="none")
    known = labels.nan_to_num()
    if problem == "regression":
        losses = (logits - known).square()
    else:
        losses = F.binary_cross_entropy_with_logits(logits, known, pos_weight=weights, reduction="none")
    return losses.mean(dim=1) * ~labels[:, 0].isnan()


def weighted(collate: Collator, weights: torch.Tensor) -> Collator:
    """Return a collator whose batches count each text as the weight of its class."""

    def collate_weighted(rows: Sequence[TokenRow]) -> Batch:
        batch = collate(rows)
        return replace(batch, num_labels=float(weights[batch.places.select(batch.labels)].sum()))

    return collate_weighted


def class_weights(setting: ClassWeights | None, targets: Targets, rows: Iterable[TokenRow]) -> torch.Tensor | None:
    """Return the weights (L) of the labels; None where there are none. `balanced` ones are n / (L n_c), as
    scikit-learn has them, of several labels (n - n_c) / n_c, of n training rows of which n_c have the label.

    Raises ScaleupError at `classify.class_weights` for a label that nothing balances."""
    if setting is None:
        return None
    if setting != "balanced":
        return torch.tensor(setting)
    counts, total = np.zeros(len(targets.names)), 0
    for row in rows:
        if isinstance(row, LabelledTokens):
            counts[row.label] += 1
        elif isinstance(row, TargetTokens):
            counts += row.label
        total += 1
    is_single = targets.problem == "single_label"
    lacking = (counts == 0) | ((counts == total) & (not is_single))
    if lacking.any():
        name, held = targets.names[int(lacking.argmax())], int(counts[lacking.argmax()])
        what = f"balanced needs training rows with and without the label {name!r}: {held} of {total} have it"
        raise ScaleupError.of("classify.class_weights", what, "give a list")
    return torch.from_numpy(total / (len(counts) * counts) if is_single else (total - counts) / counts).float()
