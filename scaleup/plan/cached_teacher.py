"""A distillation whose teacher speaks once, before training: what its files cannot hold, and what a rank holds."""

from __future__ import annotations

from collections.abc import Iterator

from scaleup.config.distill import CacheSettings
from scaleup.config.schema import RunConfig
from scaleup.config.stages import DistillConfig
from scaleup.errors import Problem
from scaleup.plan.facts import ModelFacts
from scaleup.plan.memory import FLOAT32, inference_memory
from scaleup.plan.peak import CHUNK, micro_batch_of
from scaleup.plan.reward import holds_labels
from scaleup.plan.types import MemoryPlan

MODES = ("offline", "sequence")
"""Those whose rows are all known before training."""


def cache_problems(config: DistillConfig) -> Iterator[Problem]:
    distill, cache = config.distill, "distill.cache"
    if distill.cache is None:
        return
    if distill.mode not in MODES:
        yield Problem(
            cache, f"holds rows that are known before training, unlike those of {distill.mode}", "leave it out"
        )
    if distill.divergence != "forward_kl":
        what = f"{distill.divergence} asks for the teacher's probability of every token, and distill.cache holds a few"
        yield Problem("distill.divergence", what, "use forward_kl, or leave distill.cache out")
    if distill.hidden is not None:
        what = "compares with the teacher's states, and distill.cache holds its tokens alone"
        yield Problem("distill.hidden", what, "leave either out")
    if distill.alpha == 0:
        yield Problem(cache, "with distill.alpha 0 the teacher has no say", "leave it out")
    if holds_labels(config, "train"):
        yield Problem(cache, "is of tokens, and these rows have a class each", "leave it out")
    if config.data.packing:
        yield Problem("data.packing", "is not for rows with a cached teacher", "use train.tokens_per_device")
    if config.data.streaming:
        what = "the teacher goes over all rows before training (distill.cache)"
        yield Problem("data.streaming", what, "leave either out")


def top_k_problems(config: DistillConfig, student: ModelFacts) -> Iterator[Problem]:
    """What the models' files say against a cache."""
    cache = config.distill.cache
    if cache is not None and cache.top_k > student.vocab_size:
        what = f"{cache.top_k} is more than the vocabulary's {student.vocab_size} tokens"
        yield Problem("distill.cache.top_k", what, f"use at most {student.vocab_size}")


def has_cached_teacher(config: RunConfig) -> bool:
    return isinstance(config, DistillConfig) and config.distill.cache is not None


def trained_alone(config: DistillConfig, cache: CacheSettings, student: ModelFacts) -> ModelFacts:
    """The student with what was written for a micro-batch, and one more chunk of logits: those of both parts of the
    loss."""
    rows, length = micro_batch_of(config).shape(student.task != "causal_lm")
    written = rows * length * FLOAT32 * (2 * cache.top_k + 1)
    chunk = FLOAT32 * min(CHUNK, rows * length) * student.vocab_size
    return student.model_copy(update={"footprints": tuple(each.grown(written, chunk) for each in student.footprints)})


def writing_memory(training: MemoryPlan, teacher: ModelFacts) -> MemoryPlan:
    """Before training each rank holds the whole teacher, and nothing else: it may be the fullest moment."""
    if training.peak is None:
        return training
    alone = inference_memory(teacher, training.strategy).weights
    return training.model_copy(update={"peak": max(training.peak, alone)})
