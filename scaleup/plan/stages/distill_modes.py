"""This module plans the two ways to distil beside the plain one: on the student's own answers, where TRL's trainer does
not support some settings, and from a teacher that goes over the rows once, before training."""

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
MODES = ("offline", "sequence")
"""Names the modes whose rows are all known before training."""


def on_policy_problems(config: DistillConfig) -> Iterator[Problem]:
    """Yields what TRL's trainer does not take, and what has no meaning where a student answers."""
    if config.distill.mode != "on_policy":
        return
    distill, generation, own = config.distill, config.distill.generation, "the student's own answers"
    if distill.alpha != 1:
        yield Problem("distill.alpha", f"{own} have no labels, so the teacher's share is all", "set it to 1")
    if distill.temperature != 1:
        yield Problem("distill.temperature", "TRL's trainer has no T^2 for it", "leave it out")
    if distill.hidden is not None:
        yield Problem("distill.hidden", "TRL's trainer does not compare hidden states", "leave it out")
    if generation.temperature == 0:
        what = f"0 is greedy, and {own} are drawn"
        yield Problem("distill.generation.temperature", what, "use a temperature above 0, e.g. 1")
    if generation.num_beams > 1:
        yield Problem("distill.generation.num_beams", f"{own} are drawn, not searched for", "leave it out")
    yield from _training_problems(config)


def _training_problems(config: DistillConfig) -> Iterator[Problem]:
    train, strategy = config.train, config.parallel.strategy
    if strategy not in ("single", "ddp"):
        what = f"on_policy is shown to work on whole models alone, not under {strategy}"
        yield Problem("parallel.strategy", what, "use single or ddp, or another distill.mode")
    if config.quantization is not None:
        what = "TRL's trainer would make the adapter of a quantized model bfloat16"
        yield Problem("quantization", what, "leave it out, or use another distill.mode")
    if config.adapter is not None and config.adapter.type in PROMPTS:
        yield Problem("adapter.type", f"TRL's loss goes past what {config.adapter.type} adds", "use lora")
    if config.data.packing:
        yield Problem("data.packing", "each answer follows its own prompt", "leave it out")
    rows = "a step is as many prompts as it is"
    for key, is_set in (("tokens_per_device", train.tokens_per_device), ("group_by_length", train.group_by_length)):
        if is_set:
            yield Problem(f"train.{key}", rows, "use train.per_device_train_batch_size")
    for key in ("early_stopping_patience", "load_best_model_at_end"):
        if getattr(train, key):
            what = "on_policy ends with its last step, and a loss on its own answers does not say which was best"
            yield Problem(f"train.{key}", what, "leave it out")
    if config.data.validation_fraction is not None:
        yield Problem("data.validation_fraction", "prompts are held out by name", "give data.validation")


def on_policy_model_problems(config: DistillConfig, student: ModelFacts, teacher: ModelFacts) -> Iterator[Problem]:
    """Yields problems in the files of both models that rule out training on the student's answers."""
    if config.distill.mode != "on_policy":
        return
    if student.task != "causal_lm":
        what = f"on_policy is of causal models, and model is a {student.task} model"
        yield Problem("distill.mode", what, "use offline or sequence")
    for where, facts in (("model", student), ("teacher", teacher)):
        if facts.num_virtual_tokens:
            what = f"TRL's loss goes past the {facts.num_virtual_tokens} virtual tokens of {where}"
            yield Problem(f"{where}.path", what, "name a model without them, or one with a lora adapter")
    if student.eos_token is None:
        what = f"the tokenizer of {config.model.path} has no eos token: no answer would end by itself"
        yield Problem("model.tokenizer", what, "use a tokenizer that has one")
    new, prompt = config.distill.generation.max_new_tokens, config.data.max_length
    positions = [facts.max_positions for facts in (student, teacher) if facts.max_positions is not None]
    if positions and prompt + new > min(positions):
        what = f"{new} and prompts of data.max_length {prompt} are more than the models' {min(positions)} positions"
        yield Problem("distill.generation.max_new_tokens", what, f"use at most {min(positions)} together")


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
