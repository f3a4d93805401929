"""The cards of exported and of pruned models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

import scaleup
from scaleup.config.stages import ExportConfig, PruneConfig
from scaleup.plan.facts import ModelFacts


def export_card(config: ExportConfig, facts: ModelFacts, metrics: dict[str, Any]) -> str:
    """Markdown with the metadata block that model hubs read."""
    header: dict[str, Any] = {"library_name": "transformers", "tags": ["scaleup", config.stage]}
    what = f"{facts.architecture}, exported by scaleup {scaleup.__version__} from `{config.model.path}`."
    if facts.adapter:
        header["base_model"] = facts.location
        what += f" The adapter there is merged into its unquantized base, `{facts.location}`."
    notes = """Differences of logits, as shares of the largest: what the `adapter` moves; what is moved once it is
`merged`, once the weights are `rounded` to their type, once they are `reloaded`; how far the result is from what was
`trained` on a quantized base."""
    return _card(header, Path(config.model.path).name, f"{what}\n\n{notes}", metrics)


DENSE = "Zeros are stored like any other weights: they save no bytes and, in ordinary kernels, no time."


def prune_card(config: PruneConfig, facts: ModelFacts, metrics: dict[str, Any]) -> str:
    """As `export_card`, with the settings."""
    header: dict[str, Any] = {"library_name": "transformers", "tags": ["scaleup", config.stage]}
    what = (
        f"{facts.architecture}, pruned by scaleup {scaleup.__version__} from `{config.model.path}`, not trained since."
    )
    if config.prune.sparsity is not None:
        what += f" {DENSE}"
    settings = yaml.safe_dump(config.prune.model_dump(mode="json", exclude_none=True), sort_keys=False).strip()
    return _card(header, config.name, f"{what}\n\n```yaml\n{settings}\n```", metrics)


def _card(header: dict[str, Any], title: str, text: str, metrics: dict[str, Any]) -> str:
    rows = "\n".join(f"| {key} | {value} |" for key, value in metrics.items() if value is not None)
    return f"""---
{yaml.safe_dump(header, sort_keys=False).strip()}
---

# {title}

{text}

| result | value |
|---|---|
{rows}
"""
