"""What a deployment card can compare: refused by name before a model loads."""

from __future__ import annotations

from collections.abc import Iterator

from scaleup.config.schema import ModelConfig, RunConfig
from scaleup.config.stages import CardConfig
from scaleup.errors import Problem
from scaleup.plan.facts import ModelFacts
from scaleup.plan.machine import Machine
from scaleup.plan.model_path import adapter_folder, model_path_problems

VARIANTS = "variants"
"""The config key; the facts of each go by `variants.NAME`."""


def variant_of(config: CardConfig, name: str) -> ModelConfig:
    """A variant as a model of its own, loaded as the card's model is."""
    return ModelConfig(path=config.variants[name], trust_remote_code=config.model.trust_remote_code)


def card_problems(config: RunConfig, machine: Machine) -> Iterator[Problem]:
    """What the config itself tells."""
    if not isinstance(config, CardConfig):
        return
    if config.parallel.num_processes > 1:
        what = f"{config.parallel.num_processes} processes would take each other's time"
        yield Problem("parallel.num_processes", f"a card measures one model at a time: {what}", "use 1")
    if "toxicity" in config.evaluation.metrics:
        yield Problem("evaluation.metrics", "a card cannot measure toxicity", "use scaleup evaluate for it")
    if config.data.packing:
        yield Problem("data.packing", "has no meaning for a card: its rows are held out", "leave it out")
    for key, path in (
        ("model", config.model.path),
        *((f"{VARIANTS}.{n}", path) for n, path in config.variants.items()),
    ):
        if key != "model":
            found = model_path_problems(ModelConfig(path=path), key, not machine.is_described)
            yield from (Problem(key, problem.what, problem.remedy) for problem in found)
        if adapter_folder(path):
            remedy = f"merge it first: scaleup export {path}"
            yield Problem(key, f"{path} is an adapter, and what is deployed is the merged model", remedy)


def variant_problems(config: CardConfig, facts: ModelFacts, model: ModelFacts, where: str) -> Iterator[Problem]:
    """What a variant's files tell, beside those of the model that it comes from."""
    if facts.task != model.task:
        what = f"{where} is a {facts.task} model, and what it is compared with a {model.task} model"
        yield Problem(where, what, "name a variant of the same model")
    elif facts.vocab_size != model.vocab_size or facts.tokenizer_size != model.tokenizer_size:
        what = f"{facts.vocab_size} ids ({facts.tokenizer_size} in its tokenizer) against {model.vocab_size}"
        remedy = "name a variant of the same model: other tokens have no common divergence"
        yield Problem(where, f"{what} ({model.tokenizer_size})", remedy)
    limit = facts.max_positions
    if limit is not None and config.card.prompt_tokens + config.card.new_tokens > limit:
        what = f"{config.card.prompt_tokens} and card.new_tokens {config.card.new_tokens} exceed {where}'s {limit}"
        yield Problem("card.prompt_tokens", f"{what} positions", "use fewer")
