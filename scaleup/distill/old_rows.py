"""Rows of old tasks come beside those of a new one; the model learns the new and goes on predicting of the old what it
predicted before.

To each micro-batch of new rows comes one of as many old rows. Which these are follows from the step's number alone, as
it does of the new ones, so the term is the same however a step is split. On old rows the model's teacher is a frozen
copy of what it was, and the loss the forward KL divergence of the two (Hinton et al. 2015)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from scaleup.config.stages.distill import DistillSettings
from scaleup.config.stages.sft import SFTConfig
from scaleup.data.collate import Places, WeighedBatch
from scaleup.data.loader import TrainLoader
from scaleup.distill.divergence import SoftAndHard
from scaleup.distill.language import Distillation
from scaleup.distributed.runtime import Runtime
from scaleup.models.adapted import load_finished
from scaleup.plan.facts import ModelFacts
from scaleup.train.fit import Loader
from scaleup.train.model import trainable_model
from scaleup.train.step import Objective
from scaleup.train.tally import Tally


class WithOldSelf(Distillation):
    """Holds a language model that is trained beside what it was before."""

    def __init__(self, model: Any, before: Any) -> None:
        super().__init__(model, before, DistillSettings(alpha=0.0))
        self._cross_entropy = self.loss
        self._divergence = SoftAndHard(beta=0.0, temperature=1.0, alpha=1.0)

    def forward(  # type: ignore[override]
        self, labels: torch.Tensor, places: Places, is_old: bool, **inputs: torch.Tensor
    ) -> torch.Tensor:
        """Returns the loss summed over the labelled positions of a batch (B, S), a float32 scalar in nats: the
        cross-entropy of the labels, or KL(the model as it was || the model) where they are old."""
        self.loss = self._divergence if is_old else self._cross_entropy
        return super().forward(labels, places, **inputs)


def load_with_old_self(config: SFTConfig, facts: ModelFacts, device: torch.device) -> WithOldSelf:
    """Loads the model as it would be trained alone, and a frozen copy of it, whose weights are read when the engine
    moves or shards them. It is the same on every rank. Raises ScaleupError as loading does."""
    before = load_finished(config.model, facts, None, config.mixed_precision, torch.device("cpu"), deferred=True)
    return WithOldSelf(trainable_model(config, facts, device), before)


@dataclass(frozen=True)
class OldBesideNew:
    """Gives the micro-batches of any step: of new rows, each with one of old rows behind it."""

    runtime: Runtime
    new: Loader
    old: TrainLoader
    weight: float

    def batches(self, step: int) -> Sequence[Any]:
        """Returns this rank's micro-batches in optimizer step `step`, counted from 0. Every rank must call it."""
        new, old = self.new.batches(step), self.old.batches(step)
        total, count = self.runtime.sum(*(sum(batch.num_labels for batch in batches) for batches in (new, old)))
        a_token = self.weight * total / (count or 1.0)
        beside = (WeighedBatch(batch, a_token) for batch in old)
        return [batch for pair in zip(new, beside, strict=True) for batch in pair]


def loss_beside_old_self(tally: Tally) -> Objective:
    """Returns the objective of the loop over both kinds of batches: the loss summed over labelled tokens, a float32
    scalar. It adds the divergence a token of old rows to the tally, as `regularization/kl`."""

    def loss_sum(model: Any, batch: Any) -> torch.Tensor:
        is_old, rows = isinstance(batch, WeighedBatch), batch.rows if isinstance(batch, WeighedBatch) else batch
        loss: torch.Tensor = model(labels=rows.labels, places=rows.places, is_old=is_old, **rows.inputs)
        if not isinstance(batch, WeighedBatch):
            return loss
        tally.add(rows.num_labels, **{"regularization/kl": loss})
        return batch.weight * loss

    return loss_sum
