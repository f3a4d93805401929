"""This module plans deployment cards: what cannot be compared is refused by name before a model loads."""

from __future__ import annotations

from collections.abc import Iterator

from scaleup.config.schema import ModelConfig
from scaleup.config.stages.card import CardConfig
from scaleup.errors import Problem
from scaleup.plan.facts import ModelFacts, ModelRequest
from scaleup.plan.machine import Machine
from scaleup.plan.model_path import adapter_folder, gguf_file, model_path_problems
from scaleup.plan.rules import one_answer
from scaleup.plan.stages.base import Facts, Rows, StagePlanner

VARIANTS = "variants"
"""Is the config key; the facts of each variant go by `variants.NAME`."""


class CardPlanner(StagePlanner[CardConfig]):
    shows = "card"
    makes_model = False

    def splits(self, config: CardConfig) -> dict[str, Rows]:
        return {"test": "completions"}

    def evaluation_problems(self, config: CardConfig, machine: Machine) -> Iterator[Problem]:
        yield from super().evaluation_problems(config, machine)
        yield from one_answer(config.generation, "generation", "one answer a prompt is compared")
        yield from card_problems(config, machine)

    def quantized_problems(self, config: CardConfig) -> Iterator[Problem]:
        yield from ()  # a card is what a quantized model is put on

    def models(self, config: CardConfig) -> dict[str, ModelRequest]:
        """Names the model, and the variants that Transformers has a config of."""
        variants = {name: config.variant(name) for name, path in config.variants.items() if not gguf_file(path)}
        variant_models = {f"{VARIANTS}.{name}": ModelRequest(**model.model_dump()) for name, model in variants.items()}
        return super().models(config) | variant_models

    def facts_problems(self, config: CardConfig, facts: ModelFacts, where: str) -> Iterator[Problem]:
        if where.startswith(f"{VARIANTS}."):
            yield from self.length_problems(config, facts, where)
        else:
            yield from super().facts_problems(config, facts, where)

    def model_problems(self, config: CardConfig, facts: Facts) -> Iterator[Problem]:
        for where in (f"{VARIANTS}.{name}" for name in config.variants):
            if where in facts:
                yield from variant_problems(config, facts[where], facts["model"], where)

    def complete(self, config: CardConfig, facts: Facts) -> Facts:
        """Takes a GGUF file for the model in another form: its tokens and task are the model's."""
        variants = {}
        for name, path in config.variants.items():
            where, file = f"{VARIANTS}.{name}", gguf_file(path)
            update = {"location": str(file), "tokenizer_location": facts["model"].location}
            variants[where] = facts[where] if file is None else facts["model"].model_copy(update=update)
        return {**facts, **variants}


def card_problems(config: CardConfig, machine: Machine) -> Iterator[Problem]:
    """Yields what the config itself tells."""
    if config.parallel.num_processes > 1:
        what = f"{config.parallel.num_processes} processes would take each other's time"
        yield Problem("parallel.num_processes", f"a card measures one model at a time: {what}", "use 1")
    if config.evaluation.tasks:
        yield Problem("evaluation.tasks", "are not measured by a card", "use scaleup evaluate for them")
    for metric in (metric for metric in config.evaluation.metrics if metric in ("toxicity", "reward", "kl")):
        yield Problem("evaluation.metrics", f"a card cannot measure {metric}", "use scaleup evaluate for it")
    if config.data.packing:
        yield Problem("data.packing", "has no meaning for a card: its rows are held out", "leave it out")
    for key, path in (
        ("model", config.model.path),
        *((f"{VARIANTS}.{n}", path) for n, path in config.variants.items()),
    ):
        if key != "model" and not gguf_file(path):
            problems = model_path_problems(ModelConfig(path=path), key, not machine.is_described)
            yield from (Problem(key, problem.what, problem.remedy) for problem in problems)
        if adapter_folder(path):
            remedy = f"merge it first: scaleup export {path}"
            yield Problem(key, f"{path} is an adapter, and what is deployed is the merged model", remedy)


def variant_problems(config: CardConfig, facts: ModelFacts, model: ModelFacts, where: str) -> Iterator[Problem]:
    """Yields problems in a variant's files, by themselves and beside those of the model that it comes from."""
    if facts.task != model.task:
        what = f"{where} is a {facts.task} model, and what it is compared with a {model.task} model"
        yield Problem(where, what, "name a variant of the same model")
    elif (facts.tokenizer_size, facts.vocabulary) != (model.tokenizer_size, model.vocabulary):
        counts = f"{facts.tokenizer_size} tokens against {model.tokenizer_size}"
        what = counts if facts.tokenizer_size != model.tokenizer_size else "the same tokens have different ids"
        remedy = "name a variant of the same model: other tokens have no common divergence"
        yield Problem(where, f"its tokenizer is another: {what}", remedy)
    limit = facts.max_positions
    if limit is not None and config.card.prompt_tokens + config.card.new_tokens > limit:
        what = f"{config.card.prompt_tokens} and card.new_tokens {config.card.new_tokens} exceed {where}'s {limit}"
        yield Problem("card.prompt_tokens", f"{what} positions", "use fewer")


PLANNER = CardPlanner()
