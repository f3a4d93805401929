"""This module says of a mixture of experts what training does to it, and what is refused."""

from __future__ import annotations

from collections.abc import Iterator

from scaleup.config.adapters import SelectiveAdapter
from scaleup.config.stages.base import TrainingConfig
from scaleup.errors import Problem
from scaleup.plan.facts import ModelFacts


def expert_problems(config: TrainingConfig, facts: ModelFacts, where: str) -> Iterator[Problem]:
    """Yields what does not go with the experts of the model that is trained."""
    if facts.experts is None or where != "model":
        return
    if facts.task == "seq2seq_lm":
        what = f"the auxiliary losses of {facts.architecture}'s two routers are not supported"
        yield Problem("model.path", what, "name a causal mixture of experts, or a model without")
    if config.quantization is not None:
        yield unquantized_experts("quantization", facts, "leave it out: strategy zero3 or fsdp2 shards them")


def unquantized_experts(key: str, facts: ModelFacts, remedy: str) -> Problem:
    """Returns the refusal of quantizing a model whose experts, most of its weights, would stay as they are."""
    what = f"is not supported with {facts.architecture}: its experts are stacked in tensors of three dimensions"
    return Problem(key, what, remedy)


def expert_notes(config: TrainingConfig, facts: ModelFacts, adds_router_loss: bool) -> list[str]:
    """Returns what becomes of routers and experts."""
    experts = facts.experts
    if experts is None:
        return []
    notes = []
    if (coefficient := experts.router_aux_loss_coef) is not None:
        added = f"the router's auxiliary loss is added, times {coefficient:g} (the model's router_aux_loss_coef)"
        without = f"stage {config.stage} does not add the router's auxiliary loss: experts may come to be used unevenly"
        notes.append(added if adds_router_loss else without)
    if config.adapter is not None and not isinstance(config.adapter, SelectiveAdapter):
        notes.append("the adapter is on linear layers: routers and experts, whose weights are stacked, stay frozen")
    return notes
