"""A model and the rows of data.test go in, texts or texts with a class; loss and perplexity or accuracy come out."""

from __future__ import annotations

from typing import Any

from scaleup.config.data import DataConfig
from scaleup.data.dataset import source_rows
from scaleup.data.labelled import LabelledEncoder
from scaleup.data.rows import Joined, Rows
from scaleup.data.tokenization import RowEncoder
from scaleup.distributed.runtime import Runtime
from scaleup.evaluation.classification import class_metrics, logits_of
from scaleup.evaluation.evaluate import mean_loss
from scaleup.train.metrics import perplexity
from scaleup.train.reading import Reading


def held_out_rows(data: DataConfig, encoder: RowEncoder) -> Rows:
    """Read and tokenize the rows of data.test; none if it is not given. Raises ScaleupError for unusable rows."""
    return Joined(source_rows(data, "test", encoder))


def held_out_metrics(
    runtime: Runtime, model: Any, reading: Reading, rows: Rows, batch_size: int, name: str
) -> dict[str, float]:
    """Return `loss_{name}`, in nats a labelled token, and `perplexity_{name}`; for a classifier `loss_{name}` in nats a
    row, and `accuracy_{name}`; nothing if there are no rows. Every rank must call it and gets the same."""
    if not rows:
        return {}
    runtime.progress.report(f"measuring {name}")
    collate = reading.collator(model)
    if isinstance(reading.encoder, LabelledEncoder):
        logits = logits_of(runtime, model, collate, rows, batch_size)
        metrics = class_metrics(logits, rows, reading.encoder.targets)
        return {f"{key}_{name}": metrics[key] for key in ("loss", "accuracy") if key in metrics}
    loss = mean_loss(runtime, model, collate, rows, batch_size)
    return {f"loss_{name}": loss, f"perplexity_{name}": perplexity(loss)}
