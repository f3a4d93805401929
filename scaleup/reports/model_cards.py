"""A config and metrics go in; the model card of an exported, quantized or pruned model comes out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

import scaleup
from scaleup.config.stages.export import ExportConfig
from scaleup.config.stages.prune import PruneSettings
from scaleup.config.stages.quantize import QuantizeConfig
from scaleup.plan.facts import ModelFacts

MEANING = {
    "safetensors": """\
Differences of logits, as shares of the largest: what the `adapter` moves; what is moved once it is `merged`, once the
weights are `rounded` to their type, once they are `reloaded`; how far the result is from what was `trained` on a
quantized base.""",
    "gguf": """\
`model.gguf` holds weights, tokenizer and chat template: `llama-server -m model.gguf`. Along llama.cpp's greedy text,
`agreement` is the share of tokens that are Transformers' own choice too, and `largest_gap` how far below the best
logit the others are, as a share of the largest. `merged` is what merging the adapter moved.""",
    "onnx": """\
`model.onnx` takes `input_ids` and `attention_mask` (batch, sequence), padded on the right, and gives `logits`
(batch, labels), of an encoder `last_hidden_state` (batch, sequence, width). Beside it are the tokenizer, and
config.json with the labels. `reloaded` is how far ONNX Runtime's numbers are from torch's, as a share of the largest,
over `batches` of several sizes.""",
}
LIBRARY = {"safetensors": "transformers", "gguf": "llama.cpp", "onnx": "onnx"}
"""Maps a format -> what model hubs call the library that loads it."""


def export_card(config: ExportConfig, facts: ModelFacts, metrics: dict[str, Any]) -> str:
    """Return the README of an exported model: Markdown, with the metadata block that model hubs read."""
    kind = config.export.format
    header: dict[str, Any] = {"library_name": LIBRARY[kind], "tags": ["scaleup", config.stage]}
    what = f"{facts.architecture}, exported by scaleup {scaleup.__version__} from `{config.model.path}`."
    if facts.adapter:
        header["base_model"] = facts.location
        what += f" The adapter there is merged into its unquantized base, `{facts.location}`."
    return _card(header, Path(config.model.path).name, f"{what}\n\n{MEANING[kind]}", metrics)


DENSE = "Zeros are stored like any other weights: they save no bytes and, in ordinary kernels, no time."


def prune_card(
    name: str,
    settings: PruneSettings,
    source: str,
    facts: ModelFacts,
    metrics: dict[str, Any],
    since: str = "not trained since",
) -> str:
    """Return the README of what is left of the model at the path `source`, with the settings; `since` says how it was
    trained afterwards."""
    header: dict[str, Any] = {"library_name": "transformers", "tags": ["scaleup", "prune"]}
    what = f"{facts.architecture}, pruned by scaleup {scaleup.__version__} from `{source}`, {since}."
    if settings.sparsity is not None:
        what += f" {DENSE}"
    shown = yaml.safe_dump(settings.model_dump(mode="json", exclude_none=True), sort_keys=False).strip()
    return _card(header, name, f"{what}\n\n```yaml\n{shown}\n```", metrics)


def quantize_card(config: QuantizeConfig, facts: ModelFacts, metrics: dict[str, Any]) -> str:
    """Return the README of a quantized model."""
    header = {"library_name": "transformers", "base_model": facts.location, "tags": ["scaleup", config.stage]}
    made = f"{facts.architecture} from `{config.model.path}`, as {config.quantize.method}"
    what = f"""{made}, by scaleup {scaleup.__version__}.

`bytes` are those of the weights' files, `bits` these for each of the model's parameters, quantized or not; `moved` is
the largest difference of a logit, as a share of the largest, `reloaded` the same once the folder was read again.
Perplexities are of the labelled tokens of the test rows."""
    return _card(header, Path(config.model.path).name, what, metrics)


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
