"""The config's train section goes in; an optimizer and its learning-rate schedule come out."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch.optim.lr_scheduler import LambdaLR

from scaleup.config.schema import OptimizationConfig


def build_optimizer(model: torch.nn.Module, train: OptimizationConfig) -> torch.optim.Optimizer:
    """Build the optimizer of the trainable parameters. Weight decay applies to matrices only: not to biases nor to
    normalisation weights (one-dimensional).

    AdamW is torch's fused one: a third of the time of the plain one on CPUs (docs/design/speed.md), same formula."""
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups: list[dict[str, Any]] = [
        {"params": [p for p in trainable if p.ndim >= 2], "weight_decay": train.weight_decay},
        {"params": [p for p in trainable if p.ndim < 2], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if train.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=train.learning_rate, momentum=train.momentum)
    betas = (train.adam_beta1, train.adam_beta2)
    if train.optimizer == "adamw_8bit":
        return _adamw_8bit(groups, lr=train.learning_rate, betas=betas, eps=train.adam_epsilon)
    return torch.optim.AdamW(groups, lr=train.learning_rate, betas=betas, eps=train.adam_epsilon, fused=True)


def _adamw_8bit(groups: list[dict[str, Any]], **options: Any) -> torch.optim.Optimizer:
    from scaleup.models.quantized import import_bitsandbytes

    import_bitsandbytes()
    from bitsandbytes.optim import AdamW8bit

    made: torch.optim.Optimizer = AdamW8bit(groups, **options)
    return made


def build_schedule(optimizer: torch.optim.Optimizer, train: OptimizationConfig, num_steps: int) -> LambdaLR:
    """Build one of Transformers' schedules, one tick an optimizer step. It does not go through its `get_scheduler`:
    importing that takes PEFT, bitsandbytes and torch's compiler with it, three seconds of each process."""
    warmup = (
        train.warmup_steps if train.warmup_steps is not None else math.ceil((train.warmup_ratio or 0.0) * num_steps)
    )
    if train.lr_scheduler_type == "constant":
        return LambdaLR(optimizer, lambda step: 1.0)
    after = partial(_AFTER_WARMUP[train.lr_scheduler_type], train.learning_rate)

    def factor(step: int) -> float:
        if step < warmup:
            return step / max(1, warmup)
        return after(step, warmup, (step - warmup) / max(1, num_steps - warmup))

    return LambdaLR(optimizer, factor)


def _polynomial(rate: float, step: int, warmup: int, progress: float) -> float:
    end = 1e-7 / rate
    return end + (1.0 - end) * max(0.0, 1.0 - progress)


def _cosine(rate: float, step: int, warmup: int, progress: float) -> float:
    return max(0.0, 0.5 * (1.0 + math.cos(math.pi * progress)))


def _inverse_sqrt(rate: float, step: int, warmup: int, progress: float) -> float:
    scale = warmup or 10_000
    return 1.0 / math.sqrt((step + scale - warmup) / scale)


_AFTER_WARMUP: dict[str, Callable[[float, int, int, float], float]] = {
    "linear": lambda rate, step, warmup, progress: max(0.0, 1.0 - progress),
    "cosine": _cosine,
    "cosine_with_restarts": lambda rate, step, warmup, p: 0.0 if p >= 1 else _cosine(rate, step, warmup, p % 1.0),
    "polynomial": _polynomial,
    "constant_with_warmup": lambda rate, step, warmup, progress: 1.0,
    "inverse_sqrt": _inverse_sqrt,
}
"""Maps (peak rate, step, warm-up steps, progress after them in [0, 1]) -> the share of the peak rate."""
