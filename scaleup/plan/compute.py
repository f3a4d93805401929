"""A config, its batch and its model's facts go in; the arithmetic of the run in floating-point operations, its duration
at a stated rate, and the size of its data beside the model's come out.

A token costs 2 N operations forward and 4 N backward (Kaplan et al. 2020, section 2.1), N the parameters that products
use, and 12 L H Q T more for attention over T tokens (Chowdhery et al. 2022, appendix B), where L H Q is the width of
all layers' heads together. Frozen parameters have no gradient of their own: 4 N. Recomputed activations cost one
forward pass more. In an encoder-decoder model a token goes through one half of the model, and in a mixture of experts
through a few of them."""

from __future__ import annotations

from dataclasses import dataclass

from scaleup.config.stages.base import SupervisedConfig
from scaleup.plan.facts import ModelFacts
from scaleup.plan.types import BatchPlan, ComputePlan

TOKENS_A_PARAMETER = 20
"""Counts the tokens a parameter that train a model from nothing best for its cost, about: Hoffmann et al. 2022, table
3."""


@dataclass(frozen=True)
class Rate:
    """Holds the peak rate of one device, and the share of it that a run attains."""

    teraflops: float | None = None
    utilisation: float = 0.4


def flops_a_token(facts: ModelFacts, length: int, gradient_checkpointing: bool) -> int:
    """Returns the floating-point operations that training takes per token."""
    halves = _halves(facts)
    used = (facts.num_active_parameters - facts.num_lookup_parameters) // halves
    frozen = (facts.num_parameters - facts.num_trainable_parameters) // halves
    attention = 4 * facts.attention_width * length
    forward, backward = flops_forward(facts, length), 4 * used - 2 * min(frozen, used) + 2 * attention
    return forward * (1 + gradient_checkpointing) + backward


def tokens_at_most(config: SupervisedConfig, batch: BatchPlan, texts_a_row: int = 1) -> int | None:
    """Returns the tokens of all steps if every row had `max_length` tokens; None if the number of steps is unknown."""
    length = config.data.max_length * texts_a_row
    if batch.num_steps is None:
        if batch.num_train_rows is None or config.train.num_train_epochs is None:
            return None
        return int(config.train.num_train_epochs * batch.num_train_rows * length)
    if batch.tokens is not None:
        return batch.num_steps * batch.global_batch * batch.tokens
    return batch.num_steps * batch.global_batch * length


def flops_forward(facts: ModelFacts, length: int) -> int:
    """Returns the floating-point operations that a forward pass takes per token."""
    used = (facts.num_active_parameters - facts.num_lookup_parameters) // _halves(facts)
    return 2 * used + 4 * facts.attention_width * length


def _halves(facts: ModelFacts) -> int:
    """Returns the number of halves (encoder and decoder) of the model, of which a token goes through one."""
    return 1 if facts.pooling in ("whole", "last") or facts.task == "causal_lm" else 2


@dataclass(frozen=True)
class Workload:
    """Holds what a stage adds to one forward and backward pass over each row."""

    texts_a_row: int = 1
    """Counts the texts of a row: two of a pair."""
    texts_read: int = 0
    """Counts the texts of a row that the model, and its teacher, read beside, without gradients."""
    teacher: ModelFacts | None = None
    """Adds the cost of its forward pass."""
    texts_taught: int | None = None
    """Counts the texts of a row that the teacher reads; None: all."""
    is_cached: bool = False
    """Tells whether the teacher goes over the rows once, before training."""


def compute_plan(
    config: SupervisedConfig, facts: ModelFacts, batch: BatchPlan, rate: Rate, work: Workload
) -> ComputePlan:
    """Returns the arithmetic of a run in floating-point operations."""
    a_token = flops_a_token(facts, config.data.max_length, config.gradient_checkpointing)
    once, of_teacher = 0, flops_forward(work.teacher, config.data.max_length) if work.teacher else 0
    a_token += flops_forward(facts, config.data.max_length) * work.texts_read // work.texts_a_row
    taught = work.texts_a_row + work.texts_read if work.texts_taught is None else work.texts_taught
    of_teacher = of_teacher * taught // work.texts_a_row
    if work.is_cached:
        once = (batch.num_train_rows or 0) * config.data.max_length * work.texts_a_row * of_teacher
    else:
        a_token += of_teacher
    tokens = tokens_at_most(config, batch, work.texts_a_row)
    total = None if tokens is None else tokens * a_token + once
    hours = None
    if total is not None and rate.teraflops is not None:
        hours = total / (config.parallel.num_processes * rate.teraflops * 1e12 * rate.utilisation) / 3600
    return ComputePlan(
        flops_per_token=a_token,
        tokens=tokens,
        total_flops=total,
        teraflops=rate.teraflops,
        utilisation=rate.utilisation,
        hours=hours,
    )
