"""Loss sums. The loop divides by the *global* number of labelled tokens, so the split of a batch does not matter."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from scaleup.data.collate import Batch
from scaleup.data.tokenization import IGNORE


def token_loss_sum(model: Any, batch: Batch) -> torch.Tensor:
    """Cross-entropy summed over the labelled positions of a batch, a float32 scalar.

    Only labelled rows of the logits (B, S, V) are copied to float32; a batch without labels gives a zero that still
    has a gradient, which keeps every rank in the same collectives."""
    logits = model(**batch.inputs, use_cache=False).logits
    labelled = batch.labels != IGNORE
    return F.cross_entropy(logits[labelled].float(), batch.labels[labelled], reduction="sum")
