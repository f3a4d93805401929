"""A config goes in; the size of an optimizer step and its unit come out, or settings for filling it that exclude each
other."""

from __future__ import annotations

from collections.abc import Iterator

from scaleup.config.stages.base import SupervisedConfig
from scaleup.errors import Problem
from scaleup.plan.arithmetic import DEFAULT_BATCH_SIZE, epochs_to_rows, held_out_rows, rows_to_steps
from scaleup.plan.facts import ModelFacts
from scaleup.plan.types import BatchPlan
from scaleup.records.check import DataCheck

# fmt: off
PACKABLE = frozenset({
    "cohere", "cohere2", "ernie4_5", "exaone4", "gemma", "gemma2", "gemma3_text", "glm", "glm4", "gpt2", "gpt_bigcode",
    "gpt_neox", "granite", "helium", "llama", "ministral", "mistral", "nemotron", "olmo", "olmo2", "olmo3", "phi",
    "phi3", "qwen2", "qwen3", "smollm3", "stablelm", "starcoder2",
})
# fmt: on
"""Names the architectures in which no token sees beyond the place where positions start over. Others (OPT, Bloom,
Mamba) take such positions silently and let rows see each other; tests/unit/data/test_packing.py proves each one
here."""


def micro_batch(config: SupervisedConfig) -> int:
    """Returns the number of units in a micro-batch: one where its size is given in tokens, else rows or packed
    sequences."""
    train = config.train
    if train.tokens_per_device is None:
        return train.per_device_train_batch_size or DEFAULT_BATCH_SIZE
    return train.tokens_per_device // config.data.max_length if config.data.packing else 1


def accumulation(config: SupervisedConfig) -> int:
    """Returns the number of micro-batches per step and rank."""
    per_pass = micro_batch(config) * config.parallel.num_processes
    return config.train.gradient_accumulation_steps or (config.train.global_batch_size or per_pass) // per_pass


def passes_a_step(config: SupervisedConfig) -> int:
    """Returns the number of forward and backward passes per step and rank."""
    return accumulation(config) * config.passes_a_micro_batch


def batch_plan(config: SupervisedConfig, data: DataCheck) -> BatchPlan:
    """Returns the batch arithmetic of a config that has no problems."""
    train = config.train
    per_pass = micro_batch(config) * config.parallel.num_processes
    global_batch = per_pass * accumulation(config)
    by_tokens = train.tokens_per_device is not None and not config.data.packing
    counts = [summary.rows for summary in data.sources.get("train", [])]
    fraction = config.data.validation_fraction
    num_rows = None
    if not config.data.streaming and None not in counts:
        num_rows = sum(count - (held_out_rows(count, fraction) if fraction else 0) for count in counts if count)
    num_steps = train.max_steps
    if num_steps is None and num_rows is not None and not (by_tokens or config.data.packing):
        num_steps = rows_to_steps(epochs_to_rows(train.num_train_epochs or 0.0, num_rows), global_batch)
    return BatchPlan(
        unit="micro-batches" if by_tokens else "sequences" if config.data.packing else "rows",
        tokens=train.tokens_per_device if by_tokens else None,
        micro_batch=micro_batch(config),
        accumulation=accumulation(config),
        global_batch=global_batch,
        num_steps=num_steps,
        num_train_rows=num_rows,
    )


def batch_size_problems(config: SupervisedConfig) -> Iterator[Problem]:
    """Yields sizes that do not fit one another."""
    train, data, world = config.train, config.data, config.parallel.num_processes
    if train.tokens_per_device is not None:
        for key in ("per_device_train_batch_size", "global_batch_size"):
            if getattr(train, key) is not None:
                what = "counts rows, and train.tokens_per_device fills batches by tokens"
                yield Problem(f"train.{key}", what, "give one of the two")
        if data.packing and train.tokens_per_device < data.max_length:
            what = f"{train.tokens_per_device} tokens do not hold one sequence of data.max_length {data.max_length}"
            yield Problem("train.tokens_per_device", what, f"use at least {data.max_length}")
        return
    if (wanted := train.global_batch_size) is None:
        return
    accumulation = train.gradient_accumulation_steps
    per_pass = micro_batch(config) * world
    shown = f"per_device_train_batch_size {micro_batch(config)} x {world} processes"
    if accumulation is not None and per_pass * accumulation != wanted:
        what = f"{wanted} rows are not {shown} x gradient_accumulation_steps {accumulation}"
        yield Problem("train.global_batch_size", what, f"use {per_pass * accumulation}, or leave one of them out")
    elif wanted % per_pass:
        what = f"{wanted} rows do not divide by {shown}"
        yield Problem("train.global_batch_size", what, f"use a multiple of {per_pass}")


def batching_problems(config: SupervisedConfig) -> Iterator[Problem]:
    """Yields settings that grouping rows by length excludes."""
    train, data = config.train, config.data
    chosen = {
        "data.packing": data.packing,
        "train.tokens_per_device": train.tokens_per_device is not None,
        "train.group_by_length": train.group_by_length,
    }
    for key in (key for key, is_on in chosen.items() if is_on):
        if data.streaming:
            yield Problem(key, "needs the lengths of all rows beforehand, and data.streaming is true", "leave one out")
        if not data.shuffle:
            yield Problem(key, "puts rows in another order, and data.shuffle is false", "leave one out")
    for key in ("data.packing", "train.tokens_per_device"):
        if chosen[key] and train.group_by_length:
            yield Problem("train.group_by_length", f"and {key} exclude each other", "leave it out")
    if data.packing and config.model.trust_remote_code:
        what = "is not known to keep rows apart in code of the model's own"
        yield Problem("data.packing", what, "leave it out, or use train.tokens_per_device")


def packing_problems(config: SupervisedConfig, facts: ModelFacts) -> list[Problem]:
    """Returns the problem of a model that would let packed rows see each other."""
    if not config.data.packing or facts.model_type in PACKABLE:
        return []
    is_seq2seq = facts.task == "seq2seq_lm"
    what = "is for causal models only" if is_seq2seq else f"is not known to keep rows apart in {facts.model_type}"
    return [Problem("data.packing", what, "leave it out, or use train.tokens_per_device")]
