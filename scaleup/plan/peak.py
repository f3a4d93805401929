"""The most a rank has at any moment of a training step: what it holds, and on top of that activations, logits, and the
optimizer's temporaries. In bytes.

Moments differ: activations are gone when the optimizer steps, and where nothing communicates a gradient takes space
only once it is there. So the peak is less than the sum of all parts. How many bytes a micro-batch needs beside weights
is traced on the model itself (train/footprint.py); which of the settled gradients a strategy keeps, and what its step
takes: docs/design/memory.md."""

from __future__ import annotations

from scaleup.config.stages import SupervisedConfig, TrainingConfig
from scaleup.plan.batches import accumulation, micro_batch
from scaleup.plan.deepspeed import BUCKET
from scaleup.plan.facts import Arithmetic, Footprint, MicroBatch, ModelFacts
from scaleup.plan.memory import FLOAT32, moments, training_memory, width_of
from scaleup.plan.types import MemoryPlan

CHUNK = 256
"""Positions whose logits exist at a time (train/head_loss.py)."""


def arithmetics_of(precision: str) -> tuple[Arithmetic, ...]:
    """Those of all strategies at a precision."""
    return ("float32",) if precision == "no" else ("autocast", "low")


def micro_batch_of(config: SupervisedConfig) -> MicroBatch:
    """What a rank takes at a time; rows are as long as they may be."""
    by_tokens = config.train.tokens_per_device is not None and not config.data.packing
    return MicroBatch(
        rows=micro_batch(config),
        tokens=config.train.tokens_per_device if by_tokens else None,
        max_length=config.data.max_length,
        packing=config.data.packing,
        gradient_checkpointing=config.gradient_checkpointing,
        arithmetics=arithmetics_of(config.mixed_precision),
    )


def predicted_memory(facts: ModelFacts, config: TrainingConfig, strategy: str, processes: int) -> MemoryPlan:
    """What a rank holds under `strategy`, and its peak where the model could be traced."""
    held = training_memory(facts, config, strategy, processes)
    is_whole = strategy in ("single", "ddp")
    arithmetic: Arithmetic = "float32" if config.mixed_precision == "no" else "autocast" if is_whole else "low"
    footprint = facts.footprint(arithmetic)
    if footprint is None or not isinstance(config, SupervisedConfig):
        return held
    most, step = footprint.most(0.0), _step(held, config)
    logits = min(most, footprint.logits)
    peak = max(_backward(held, footprint, config, processes), held.weights + held.optimizer + step)
    return held.model_copy(update={"activations": most - logits, "logits": logits, "step": step, "peak": peak})


def _backward(held: MemoryPlan, footprint: Footprint, config: SupervisedConfig, processes: int) -> int:
    """The fullest moment from the start of a forward to the end of a backward pass. `single`, ZeRO-1 and FSDP2 hold
    gradients as they come, where the others have space for all of theirs from the start. While DeepSpeed reduces a
    bucket there is a copy of it, the first once a bucket is full."""
    settled, share, absent = footprint.moments[-1][1], 0.0, 0
    if held.strategy in ("single", "zero1", "fsdp2") and accumulation(config) == 1 and settled:
        share, absent = held.gradients / settled, held.gradients
    most = footprint.most(share)
    if held.strategy.startswith("zero") and processes > 1:
        bucket = min(width_of(config) * BUCKET, settled)
        most = max(most, footprint.after(bucket, share) + bucket)
    return held.total - absent + most


def _step(held: MemoryPlan, config: SupervisedConfig) -> int:
    """Gradients during the optimizer's step. torch's fused AdamW takes nothing more; DeepSpeed lays its partition of
    them out flat, in the run's precision and in float32."""
    if not held.strategy.startswith("zero"):
        return held.gradients
    if held.host and not held.optimizer:
        return held.gradients  # the step is taken in main memory
    partition = held.optimizer // (FLOAT32 * (1 + moments(config.train)))  # elements
    return partition * (width_of(config) * 2 + (FLOAT32 if config.mixed_precision != "no" else 0))
