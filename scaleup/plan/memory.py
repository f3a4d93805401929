"""Memory that a rank holds for the whole run, by exact arithmetic on parameter counts.

Training is in float32 master weights (with autocast for bf16 and fp16), so weights and gradients take 4 bytes a
parameter; AdamW keeps two float32 moments (Loshchilov & Hutter 2019), SGD one with momentum and none without."""

from __future__ import annotations

from scaleup.config.schema import TrainConfig
from scaleup.plan.facts import ModelFacts
from scaleup.plan.types import MemoryPlan

BYTES = 4


def training_memory(facts: ModelFacts, train: TrainConfig, strategy: str) -> MemoryPlan:
    """`single` and `ddp` replicate everything on each rank."""
    moments = {"adamw": 2, "sgd": 1 if train.momentum else 0}[train.optimizer]
    return MemoryPlan(
        strategy=strategy,
        weights=BYTES * facts.num_parameters,
        gradients=BYTES * facts.num_trainable_parameters,
        optimizer=BYTES * moments * facts.num_trainable_parameters,
    )


def inference_memory(facts: ModelFacts, strategy: str) -> MemoryPlan:
    return MemoryPlan(strategy=strategy, weights=BYTES * facts.num_parameters, gradients=0, optimizer=0)
