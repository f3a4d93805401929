"""A model and its variants go in; card.json, card.md and card.png come out: each variant measured beside the model it
comes from."""

from __future__ import annotations

from typing import Any

from scaleup.artifacts.files import write_json, write_text
from scaleup.config.stages.card import CardConfig
from scaleup.evaluation.card import Measured, as_stored, card_rows, measure_costs, measure_variant, this_machine
from scaleup.reports.deployment import markdown, plot, verdict
from scaleup.reports.lineage import with_lineage
from scaleup.train.job import Job

BASE = "model"
"""Is the name of the row of the model that the variants come from."""


def run(job: Job[CardConfig]) -> None:
    config, plan, runtime, folder = job.config, job.plan, job.runtime, job.folder.path
    runtime.progress.report("reading data")
    rows = card_rows(job)
    compared = {BASE: (config.model, plan.model)}
    compared |= {name: (config.variant(name), plan.models[f"variants.{name}"]) for name in config.variants}
    costs = measure_costs(job, compared)
    base = as_stored(config.model, plan.model, runtime.device)
    measured: dict[str, Measured] = {
        name: Measured(costs[name], *measure_variant(job, name, model, facts, rows, base))
        for name, (model, facts) in compared.items()
    }
    models: dict[str, dict[str, Any]] = {
        name: each.beside(measured[BASE], config.card.bootstrap_samples) for name, each in measured.items()
    }
    for name in config.variants:
        models[name]["verdict"] = verdict(models[name], models[BASE])
    machine, where = this_machine(), ", ".join(source.path for source in config.data.test or [])
    write_json(folder / "card.json", {"models": models, "machine": machine, "data": where})
    plot(models, folder / "card.png")
    write_text(folder / "card.md", with_lineage(markdown(models, BASE, where, machine), job.folder))
    metrics = {f"{name}.perplexity": each["quality"]["perplexity"] for name, each in models.items()}
    job.finish(metrics)
