"""A config and its model's facts go in; the model to train comes out, with its adapter and the head that gives the
loss."""

from __future__ import annotations

from typing import Any

import torch

from scaleup.config.stages.base import SupervisedConfig, TrainingConfig
from scaleup.distributed.runtime import seed_everything
from scaleup.models.adapted import load_base, make_trainable
from scaleup.models.load import enable_gradient_checkpointing
from scaleup.plan.facts import ModelFacts
from scaleup.train.head_loss import fuse_head


def model_to_train(config: SupervisedConfig, facts: ModelFacts, device: torch.device) -> Any:
    """Return `trainable_model`; a language model gets a head that gives the loss."""
    model = trainable_model(config, facts, device)
    if facts.task != "sequence_classification" and config.mixed_precision != "fp16":
        fuse_head(model)  # in fp16 the loss scale must reach the gradient of the logits
    return model


def trainable_model(config: TrainingConfig, facts: ModelFacts, device: torch.device) -> Any:
    """Load the model and put its adapter on; the same on every rank. It is on `device` if it is quantized; else its
    weights are read when an engine prepares it. Raises ScaleupError as loading does."""
    seed_everything(config.train.seed)
    model = load_base(config.model, facts, config.quantization, config.mixed_precision, device, deferred=True)
    if config.gradient_checkpointing:
        enable_gradient_checkpointing(model)
    seed_everything(config.train.seed)  # a new adapter is drawn alike, whatever loading drew
    return make_trainable(model, facts, config.adapter, config.model.tokenizer)
