"""On-policy distillation: what TRL's trainer has no place for, and what has no meaning where a student answers."""

from __future__ import annotations

from collections.abc import Iterator

from scaleup.config.schema import RunConfig
from scaleup.config.stages import DistillConfig
from scaleup.errors import Problem
from scaleup.plan.facts import ModelFacts
from scaleup.plan.machine import Machine

PROMPTS = ("prompt_tuning", "prefix", "prefix_tuning")


def on_policy_problems(config: RunConfig, machine: Machine) -> Iterator[Problem]:
    if not isinstance(config, DistillConfig) or config.distill.mode != "on_policy":
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
    """What the files of both models say against it."""
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
