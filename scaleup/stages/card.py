"""A deployment card: each variant measured beside the model it comes from -> card.json, card.md, card.png."""

from __future__ import annotations

from typing import Any

from scaleup.artifacts.files import write_json, write_text
from scaleup.artifacts.run_folder import RunFolder
from scaleup.config.stages import CardConfig
from scaleup.distributed.runtime import Runtime
from scaleup.evaluation.card import Measured, as_stored, card_rows, measure_costs, measure_variant, this_machine
from scaleup.evaluation.deployment import markdown, plot, verdict
from scaleup.evaluation.report import finish
from scaleup.plan.card import variant_of
from scaleup.plan.types import Plan

BASE = "model"
"""The row of what the variants come from."""


def run(config: CardConfig, plan: Plan, runtime: Runtime, folder: RunFolder) -> None:
    runtime.progress.report("reading data")
    rows = card_rows(config, plan)
    asked = {BASE: (config.model, plan.model)}
    asked |= {name: (variant_of(config, name), plan.variants[name]) for name in config.variants}
    costs = measure_costs(config, plan, runtime, asked)
    base = as_stored(config.model, plan.model, runtime.device)
    found: dict[str, Measured] = {
        name: Measured(
            costs[name], *measure_variant(config, runtime, name, model, facts, rows, base, folder.path / ".parts")
        )
        for name, (model, facts) in asked.items()
    }
    models: dict[str, dict[str, Any]] = {
        name: each.beside(found[BASE], config.card.bootstrap_samples) for name, each in found.items()
    }
    for name in config.variants:
        models[name]["verdict"] = verdict(models[name], models[BASE])
    machine, where = this_machine(), ", ".join(source.path for source in config.data.test or [])
    write_json(folder.path / "card.json", {"models": models, "machine": machine, "data": where})
    plot(models, folder.path / "card.png")
    write_text(folder.path / "card.md", markdown(models, BASE, where, machine))
    metrics = {f"{name}.perplexity": each["quality"]["perplexity"] for name, each in models.items()}
    finish(folder, config.stage, config.name, metrics, None)
