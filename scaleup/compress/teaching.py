"""A config's student and teacher, as they are trained."""

from __future__ import annotations

from typing import Any

import torch

from scaleup.compress.classifier_distillation import ClassifierDistillation
from scaleup.compress.distillation import CachedDistillation, Distillation
from scaleup.compress.taught import Taught
from scaleup.config.stages import DistillConfig
from scaleup.data.collate import Batch
from scaleup.distributed.runtime import seed_everything
from scaleup.models.adapted import load_finished
from scaleup.plan.facts import ModelFacts
from scaleup.train.model import trainable_model


def load_distillation(config: DistillConfig, facts: ModelFacts, teacher: ModelFacts, device: torch.device) -> Taught:
    """The student as stage `sft` would train it, and its teacher as it is, on the CPU in float32: the engine moves or
    shards it; none where its opinion is cached. The same on every rank. Raises ScaleupError as loading does."""
    if config.distill.cache is not None:
        return CachedDistillation(trainable_model(config, facts, device), config.distill)
    frozen = load_finished(config.teacher, teacher, None, config.mixed_precision, torch.device("cpu"))
    student = trainable_model(config, facts, device)
    seed_everything(config.train.seed)  # projections are drawn alike
    if facts.task == "sequence_classification":
        return ClassifierDistillation(student, frozen, config.distill)
    return Distillation(student, frozen, config.distill)


def distillation_loss(model: Any, batch: Batch) -> torch.Tensor:
    """The objective of the loop: summed over a batch's labelled positions, a float32 scalar."""
    cached = {} if batch.taught is None else {"taught": batch.taught}
    loss: torch.Tensor = model(labels=batch.labels, **cached, **batch.inputs)
    return loss
