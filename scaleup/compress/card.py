"""The card of an exported model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

import scaleup
from scaleup.config.stages import ExportConfig
from scaleup.plan.facts import ModelFacts


def export_card(config: ExportConfig, facts: ModelFacts, metrics: dict[str, Any]) -> str:
    """Markdown with the metadata block that model hubs read."""
    header: dict[str, Any] = {"library_name": "transformers", "tags": ["scaleup", config.stage]}
    what = f"{facts.architecture}, exported by scaleup {scaleup.__version__} from `{config.model.path}`."
    if facts.adapter:
        header["base_model"] = facts.location
        what += f" The adapter there is merged into its unquantized base, `{facts.location}`."
    rows = "\n".join(f"| {key} | {value} |" for key, value in metrics.items() if value is not None)
    return f"""---
{yaml.safe_dump(header, sort_keys=False).strip()}
---

# {Path(config.model.path).name}

{what}

Differences of logits, as shares of the largest: what the `adapter` moves; what is moved once it is `merged`, once the
weights are `rounded` to their type, once they are `reloaded`; how far the result is from what was `trained` on a
quantized base.

| result | value |
|---|---|
{rows}
"""
