"""A classifier and held-out texts with a class go in; its accuracy and cross-entropy come out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F

from scaleup.config.schema import ModelConfig
from scaleup.config.stages.evaluate import EvaluateConfig
from scaleup.data.collate import Collator
from scaleup.data.loader import eval_batches
from scaleup.data.sources import made_examples
from scaleup.data.tokenization import IGNORE, TokenRow
from scaleup.distributed.runtime import Runtime
from scaleup.errors import ScaleupError
from scaleup.models.adapted import load_finished
from scaleup.models.classifier import classify
from scaleup.models.load import load_tokenizer
from scaleup.plan.facts import ModelFacts
from scaleup.train.job import Job
from scaleup.train.reading import reading_of


def evaluate_classifiers(job: Job[EvaluateConfig]) -> dict[str, dict[str, Any]]:
    """Return rows, cross-entropy in nats and accuracy for each column of the results. Every rank must call it and gets
    the whole result."""
    config, plan = job.config, job.plan
    columns = {"model": (config.model, plan.model)}
    if config.baseline is not None:
        columns = {"baseline": (config.baseline, plan.models["baseline"]), **columns}
    return {name: _measure(job, name, model, facts) for name, (model, facts) in columns.items()}


def _measure(job: Job[EvaluateConfig], name: str, model: ModelConfig, facts: ModelFacts) -> dict[str, Any]:
    config, runtime = job.config, job.runtime
    runtime.progress.report(f"loading {name}")
    loaded = load_finished(model, facts, config.quantization, config.mixed_precision, runtime.device)
    tokenizer = load_tokenizer(model, facts.tokenizer_at)
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
    runtime: Runtime, model: Any, collate: Collator, rows: Sequence[TokenRow], batch_size: int
) -> dict[str, Any]:
    """Return the metrics of a loaded classifier, as `evaluate_classifiers` does."""
    sums = torch.zeros(3, dtype=torch.float64)
    for batch in eval_batches(rows, collate, batch_size, runtime.rank, runtime.world):
        moved = batch.to(runtime.device)
        with runtime.accelerator.autocast():
            logits = classify(model, moved.inputs)
        losses = F.cross_entropy(logits, moved.labels, ignore_index=IGNORE, reduction="sum")
        right = (logits.argmax(dim=1) == moved.labels).sum()
        sums += torch.tensor([float(losses), float(right), batch.num_labels], dtype=torch.float64)
    loss, hits, count = runtime.sum(*sums.tolist())
    return {"rows": int(count), "loss": loss / count, "accuracy": hits / count}
