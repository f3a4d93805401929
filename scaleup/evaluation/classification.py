"""How often a classifier names the right class of held-out texts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F

from scaleup.config.schema import ModelConfig
from scaleup.config.stages import EvaluateConfig
from scaleup.data.collate import Collator
from scaleup.data.loader import eval_batches
from scaleup.data.sources import made_examples
from scaleup.data.tokenization import IGNORE, Tokens
from scaleup.distributed.runtime import Runtime
from scaleup.errors import ScaleupError
from scaleup.models.adapted import load_finished
from scaleup.models.classifier import classify
from scaleup.models.load import load_tokenizer
from scaleup.plan.facts import ModelFacts
from scaleup.plan.types import Plan
from scaleup.train.reading import reading_of


def evaluate_classifiers(config: EvaluateConfig, plan: Plan, runtime: Runtime) -> dict[str, dict[str, Any]]:
    """Of each column of the results: rows, cross-entropy in nats and accuracy. Every rank must call it and gets the
    whole result."""
    asked = {"model": (config.model, plan.model)}
    if config.baseline is not None and plan.baseline is not None:
        asked = {"baseline": (config.baseline, plan.baseline), **asked}
    return {name: _measure(config, runtime, name, model, facts) for name, (model, facts) in asked.items()}


def _measure(
    config: EvaluateConfig, runtime: Runtime, name: str, model: ModelConfig, facts: ModelFacts
) -> dict[str, Any]:
    runtime.progress.report(f"loading {name}")
    loaded = load_finished(model, facts, config.quantization, config.mixed_precision, runtime.device)
    tokenizer = load_tokenizer(model, facts.tokenizer_location or facts.location)
    reading = reading_of(facts, tokenizer, config.data)
    split = config.evaluation.split
    sources, encoder = getattr(config.data, split), reading.encoder
    examples = [row for source in sources for row in made_examples(config.data, source, split, encoder)]
    rows = [row for row in encoder(examples[: config.evaluation.max_samples]) if row is not None]
    if not rows:
        raise ScaleupError.of(f"data.{split}", f"no row fits max_length {config.data.max_length}", "raise it")
    runtime.progress.report(f"classes of {name}")
    return class_metrics(runtime, loaded, reading.collator(loaded), rows, config.evaluation.batch_size)


@torch.no_grad()
def class_metrics(
    runtime: Runtime, model: Any, collate: Collator, rows: Sequence[Tokens], batch_size: int
) -> dict[str, Any]:
    """Of a loaded classifier, as `evaluate_classifiers`."""
    sums = torch.zeros(3, dtype=torch.float64)
    for batch in eval_batches(rows, collate, batch_size, runtime.rank, runtime.world):
        given = batch.to(runtime.device)
        with runtime.accelerator.autocast():
            logits = classify(model, given.inputs)
        losses = F.cross_entropy(logits, given.labels, ignore_index=IGNORE, reduction="sum")
        right = (logits.argmax(dim=1) == given.labels).sum()
        sums += torch.tensor([float(losses), float(right), batch.num_labels], dtype=torch.float64)
    loss, hits, count = runtime.sum(*sums.tolist())
    return {"rows": int(count), "loss": loss / count, "accuracy": hits / count}
