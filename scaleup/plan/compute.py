"""How much arithmetic a run is, how long it takes at a stated rate, and whether its data is much or little.

A token costs 2 N operations forward and 4 N backward (Kaplan et al. 2020, section 2.1), N the parameters that products
use, and 12 L H Q T more for attention over T tokens (Chowdhery et al. 2022, appendix B), where L H Q is the width
of all layers' heads together. Frozen parameters have no gradient of their own: 4 N. Recomputed activations cost one
forward pass more. In an encoder-decoder model a token goes through one half of the model."""

from __future__ import annotations

from dataclasses import dataclass

from scaleup.config.stages import RewardConfig, SupervisedConfig
from scaleup.plan.cached_teacher import has_cached_teacher
from scaleup.plan.facts import ModelFacts
from scaleup.plan.types import BatchPlan, ComputePlan

TOKENS_A_PARAMETER = 20
"""What trains a model from nothing best for its cost, about: Hoffmann et al. 2022, table 3."""


@dataclass(frozen=True)
class Rate:
    """Of one device: what it could do, and the share of that which a run gets."""

    teraflops: float | None = None
    utilisation: float = 0.4


def flops_a_token(facts: ModelFacts, length: int, gradient_checkpointing: bool) -> int:
    """Of training, in floating-point operations."""
    halves = _halves(facts)
    used = (facts.num_parameters - facts.num_lookup_parameters) // halves
    frozen = (facts.num_parameters - facts.num_trainable_parameters) // halves
    attention = 4 * facts.attention_width * length
    forward, backward = flops_forward(facts, length), 4 * used - 2 * min(frozen, used) + 2 * attention
    return forward * (1 + gradient_checkpointing) + backward


def tokens_at_most(config: SupervisedConfig, batch: BatchPlan) -> int | None:
    """Tokens of all steps, if every row were as long as it may be; None where the steps are not known. A pair is two
    texts."""
    length = config.data.max_length * (2 if isinstance(config, RewardConfig) else 1)
    if batch.num_steps is None:
        if batch.num_train_rows is None or config.train.num_train_epochs is None:
            return None
        return int(config.train.num_train_epochs * batch.num_train_rows * length)
    if batch.tokens is not None:
        return batch.num_steps * batch.global_batch * batch.tokens
    return batch.num_steps * batch.global_batch * length


def flops_forward(facts: ModelFacts, length: int) -> int:
    """Of a forward pass, a token."""
    used = (facts.num_parameters - facts.num_lookup_parameters) // _halves(facts)
    return 2 * used + 4 * facts.attention_width * length


def _halves(facts: ModelFacts) -> int:
    """Of the model, of which a token goes through one."""
    return 1 if facts.pooling in ("whole", "last") or facts.task == "causal_lm" else 2


def compute_plan(
    config: SupervisedConfig, facts: ModelFacts, batch: BatchPlan, rate: Rate, teacher: ModelFacts | None = None
) -> ComputePlan:
    """Of the run; a teacher costs its forward pass, one that is cached a single one over the rows."""
    a_token = flops_a_token(facts, config.data.max_length, config.gradient_checkpointing)
    once, asked = 0, flops_forward(teacher, config.data.max_length) if teacher else 0
    if has_cached_teacher(config):
        once = (batch.num_train_rows or 0) * config.data.max_length * asked
    else:
        a_token += asked
    tokens = tokens_at_most(config, batch)
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
