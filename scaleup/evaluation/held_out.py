"""What a model is on the rows of data.test, whether they are texts or texts with a class."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from scaleup.config.schema import DataConfig
from scaleup.data.sources import encode_source
from scaleup.data.tokenization import RowEncoder, Tokens
from scaleup.distributed.runtime import Runtime
from scaleup.evaluation.classification import class_metrics
from scaleup.evaluation.evaluate import mean_loss
from scaleup.evaluation.metrics import perplexity
from scaleup.train.reading import Reading


def held_out_rows(data: DataConfig, encoder: RowEncoder) -> list[Tokens]:
    """None where there is no data.test. Raises ScaleupError for rows that cannot be used."""
    return [row for source in data.test or [] for row in encode_source(data, source, "test", encoder)[0]]


def held_out_metrics(
    runtime: Runtime, model: Any, reading: Reading, rows: Sequence[Tokens], batch_size: int, name: str
) -> dict[str, float]:
    """`loss_{name}`, nats a labelled token, and `perplexity_{name}`; of a classifier nats a row, and
    `accuracy_{name}`. Nothing of no rows. Every rank must call it and gets the same."""
    if not rows:
        return {}
    runtime.progress.report(f"measuring {name}")
    collate = reading.collator(model)
    if reading.encoder.task == "sequence_classification":
        found = class_metrics(runtime, model, collate, rows, batch_size)
        return {f"{key}_{name}": found[key] for key in ("loss", "accuracy")}
    loss = mean_loss(runtime, model, collate, rows, batch_size)
    return {f"loss_{name}": loss, f"perplexity_{name}": perplexity(loss)}
