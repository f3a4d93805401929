"""A reward model and a batch of pairs go in; the loss summed over the pairs comes out. The loop divides by the *global*
number of pairs, so the split of a batch does not matter."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from scaleup.data.collate import Batch
from scaleup.models.classifier import classify
from scaleup.train.step import Objective


def preference_loss(center_coefficient: float | None = None) -> Objective:
    """Return the Bradley-Terry objective: -log sigmoid(chosen - rejected - margin), summed over a batch's pairs, a
    float32 scalar (Ouyang et al. 2022, equation 1; margins: Touvron et al. 2023, equation 2). `center_coefficient`
    weighs (chosen + rejected)^2 beside it (Eisenstein et al. 2023).

    Both responses go through one forward. Fillers count as nothing, but keep every rank in the same collectives."""

    def loss_sum(model: Any, batch: Batch) -> torch.Tensor:
        is_real = ~batch.labels.isnan()
        chosen, rejected = pair_scores(model, batch)
        losses = -F.logsigmoid(chosen - rejected - batch.labels.nan_to_num())
        if center_coefficient is not None:
            losses = losses + center_coefficient * (chosen + rejected) ** 2
        return (losses * is_real).sum()

    return loss_sum


def pair_scores(model: Any, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Return scores (B) of the chosen and of the rejected responses of a batch, in float32."""
    chosen, rejected = classify(model, batch.inputs).squeeze(1).chunk(2)
    return chosen, rejected
