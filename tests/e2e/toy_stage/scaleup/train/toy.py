"""The loss of the toy stage."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from scaleup.data.collate import Batch
from scaleup.train.losses import labelled_logits
from scaleup.train.step import Objective


def smoothed_loss(label_smoothing: float) -> Objective:
    """Returns cross-entropy with smoothed labels, summed over the labelled positions of a batch."""

    def loss_sum(model: Any, batch: Batch) -> torch.Tensor:
        logits, labels = labelled_logits(model, batch.places, batch.inputs), batch.places.select(batch.labels)
        return F.cross_entropy(logits.float(), labels, reduction="sum", label_smoothing=label_smoothing)

    return loss_sum
