"""Optimizers and learning-rate schedules by their config names."""

from __future__ import annotations

import math

import torch
from torch.optim.lr_scheduler import LRScheduler
from transformers import get_scheduler

from scaleup.config.schema import TrainConfig


def build_optimizer(model: torch.nn.Module, train: TrainConfig) -> torch.optim.Optimizer:
    """Weight decay applies to matrices only: not to biases nor to normalisation weights (one-dimensional).

    AdamW is torch's fused one: a third of the time of the plain one on CPUs (docs/design/speed.md), same formula."""
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trainable if p.ndim >= 2], "weight_decay": train.weight_decay},
        {"params": [p for p in trainable if p.ndim < 2], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if train.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=train.learning_rate, momentum=train.momentum)
    betas = (train.adam_beta1, train.adam_beta2)
    return torch.optim.AdamW(groups, lr=train.learning_rate, betas=betas, eps=train.adam_epsilon, fused=True)


def build_schedule(optimizer: torch.optim.Optimizer, train: TrainConfig, num_steps: int) -> LRScheduler:
    """Transformers' schedules, one tick an optimizer step."""
    warmup = (
        train.warmup_steps if train.warmup_steps is not None else math.ceil((train.warmup_ratio or 0.0) * num_steps)
    )
    return get_scheduler(train.lr_scheduler_type, optimizer, num_warmup_steps=warmup, num_training_steps=num_steps)
