"""This module plans the two ways to distil beside the plain one: on the student's own answers, and from a teacher that
goes over the rows once, before training."""

from __future__ import annotations

from collections.abc import Iterator

from scaleup.config.stages.distill import CacheSettings, DistillConfig
from scaleup.errors import Problem
from scaleup.plan.arithmetic import LOGITS_CHUNK
from scaleup.plan.facts import ModelFacts
from scaleup.plan.memory import FLOAT32, inference_memory, micro_batch_of
from scaleup.plan.types import MemoryPlan
from scaleup.records.format_rules import holds_labels

PROMPTS = ("prompt_tuning", "prefix", "prefix_tuning")
UNDRAWN = ("top_k", "min_p", "typical_p", "min_new_tokens", "repetition_penalty", "no_repeat_ngram_size", "stop")
"""Names the settings of answers that a student's own do not have."""
MODES = ("offline", "sequence")
"""Names the modes whose rows are all known before training."""


def on_policy_problems(config: DistillConfig) -> Iterator[Problem]:
    """Yields what has no meaning where a student answers."""
    if config.distill.mode != "on_policy":
        return
    distill, train, own = config.distill, config.train, "the student's own answers"
    if distill.alpha != 1:
        yield Problem("distill.alpha", f"{own} have no labels, so the teacher's share is all", "set it to 1")
    if distill.generation.temperature == 0:
        what = f"0 is greedy, and {own} are drawn"
        yield Problem("distill.generation.temperature", what, "use a temperature above 0, e.g. 1")
    if distill.generation.num_beams > 1:
        yield Problem("distill.generation.num_beams", f"{own} are drawn, not searched for", "leave it out")
    for key in UNDRAWN:
        if getattr(distill.generation, key) is not None:
            what = f"{own} are drawn as the model's probabilities are, by temperature and top_p"
            yield Problem(f"distill.generation.{key}", what, "leave it out")
    if config.adapter is not None and config.adapter.type in PROMPTS:
        yield Problem("adapter.type", _unshown(f"the virtual tokens of {config.adapter.type}"), "use lora")
    if config.data.packing:
        yield Problem("data.packing", "each answer follows its own prompt", "leave it out")
    rows = "a step is as many prompts as it is"
    for key, is_set in (("tokens_per_device", train.tokens_per_device), ("group_by_length", train.group_by_length)):
        if is_set:
            yield Problem(f"train.{key}", rows, "use train.per_device_train_batch_size")
    if config.data.validation_fraction is not None:
        yield Problem("data.validation_fraction", "prompts are held out by name", "give data.validation")


def _unshown(what: str) -> str:
    return f"nothing here shows {what} to be the same with a cache, as a student answers, and without, as it learns"


def on_policy_model_problems(config: DistillConfig, student: ModelFacts, teacher: ModelFacts) -> Iterator[Problem]:
    """Yields problems in the files of both models that rule out training on the student's answers."""
    if config.distill.mode != "on_policy":
        return
    if student.task == "sequence_classification":
        yield Problem("distill.mode", "on_policy is of models that write, and model is a classifier", "use offline")
        return
    for where, facts in (("model", student), ("teacher", teacher)):
        if facts.num_virtual_tokens:
            what = _unshown(f"the {facts.num_virtual_tokens} virtual tokens of {where}")
            yield Problem(f"{where}.path", what, "name a model without them, or one with a lora adapter")
    if student.eos_token is None:
        what = f"the tokenizer of {config.model.path} has no eos token: no answer would end by itself"
        yield Problem("model.tokenizer", what, "use a tokenizer that has one")
    new, prompt = config.distill.generation.max_new_tokens, config.data.max_length
    positions = [facts.max_positions for facts in (student, teacher) if facts.max_positions is not None]
    if not positions:
        return
    most, where = min(positions), "distill.generation.max_new_tokens"
    if student.task == "seq2seq_lm" and new >= most:  # the decoder's start takes a position
        yield Problem(where, f"{new} are more than the models' decoders have positions for", f"use under {most}")
    elif student.task == "causal_lm" and prompt + new > most:
        what = f"{new} and prompts of data.max_length {prompt} are more than the models' {most} positions"
        yield Problem(where, what, f"use at most {most} together")


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
    if holds_labels(config.data, "train"):
        yield Problem(cache, "is of tokens, and these rows have a class each", "leave it out")
    if config.data.packing:
        yield Problem("data.packing", "is not for rows with a cached teacher", "use train.tokens_per_device")
    if config.data.streaming:
        what = "the teacher goes over all rows before training (distill.cache)"
        yield Problem("data.streaming", what, "leave either out")


def top_k_problems(config: DistillConfig, student: ModelFacts, teacher: ModelFacts) -> Iterator[Problem]:
    """Yields a cache of more tokens than the vocabulary has, padding aside where it differs."""
    cache = config.distill.cache
    most = student.vocab_size if student.vocab_size == teacher.vocab_size else student.tokenizer_size
    if cache is not None and cache.top_k > most:
        what = f"{cache.top_k} is more than the vocabulary's {most} tokens"
        yield Problem("distill.cache.top_k", what, f"use at most {most}")


def trained_alone(config: DistillConfig, cache: CacheSettings, student: ModelFacts) -> ModelFacts:
    """Returns the facts of the student with what was written for a micro-batch, and one more chunk of logits: those of
    both parts of the loss."""
    rows, length = micro_batch_of(config).shape(student.task)
    written = rows * length * FLOAT32 * (2 * cache.top_k + 1)
    chunk = FLOAT32 * min(LOGITS_CHUNK, rows * length) * student.vocab_size
    return student.model_copy(update={"footprints": tuple(each.grown(written, chunk) for each in student.footprints)})


def writing_memory(training: MemoryPlan, teacher: ModelFacts) -> MemoryPlan:
    """Returns the larger of the memory of training and that before it, when each rank holds the whole teacher and
    nothing else."""
    if training.peak is None:
        return training
    alone = inference_memory(teacher, training.strategy).weights
    return training.model_copy(update={"peak": max(training.peak, alone)})
