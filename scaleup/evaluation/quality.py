"""A model, its teacher and rows go in; perplexity with an interval, divergence and agreement come out."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from scaleup.data.collate import Batch
from scaleup.train.metrics import perplexity


@dataclass(frozen=True)
class RowQuality:
    """The quality of a model on R rows, float64 (R,) each: sums over a row's labelled tokens."""

    num_labels: np.ndarray
    loss: np.ndarray
    """Nats: -log q(label)."""
    divergence: np.ndarray
    """Nats: KL(teacher || model)."""
    agreeing: np.ndarray
    """Tokens at which model and teacher have the same likeliest token."""

    @property
    def perplexity(self) -> float:
        return perplexity(self.loss.sum() / self.num_labels.sum())


@torch.no_grad()
def row_quality(
    model: Any, teacher: Any, batches: Iterable[Batch], device: torch.device, num_ids: int | None = None
) -> RowQuality:
    """Measure a model beside its teacher; for the teacher itself give the same twice. Logits exist for a batch's
    labelled tokens at a time. Rows are padded on the right, as collators do it.

    Where both have different numbers of embeddings, divergence and agreement are of the first `num_ids` ids, those
    that the tokenizer gives."""
    model.eval(), teacher.eval()
    rows = [_of_batch(model, teacher, batch.to(device), num_ids) for batch in batches]
    return RowQuality(*np.concatenate(rows, axis=1))


def _of_batch(model: Any, teacher: Any, batch: Batch, num_ids: int | None) -> np.ndarray:
    """Return (4, B) float64: labels, loss, divergence, agreement of each row."""
    log_q = token_log_probabilities(model, batch)
    log_p = log_q if teacher is model else token_log_probabilities(teacher, batch)
    loss = -log_q.gather(1, batch.places.select(batch.labels)[:, None]).squeeze(1)
    if log_p.shape != log_q.shape:
        log_p, log_q = (part[:, :num_ids].log_softmax(dim=1) for part in (log_p, log_q))
    divergence = (log_p.exp() * (log_p - log_q)).sum(dim=1)
    agreeing = (log_p.argmax(dim=1) == log_q.argmax(dim=1)).float()
    row_of = batch.places.flat // batch.places.width
    sums = [torch.ones_like(loss), loss, divergence, agreeing]
    return np.stack(
        [
            torch.zeros(len(batch.labels), dtype=torch.float64).index_add_(0, row_of.cpu(), part.double().cpu()).numpy()
            for part in sums
        ]
    )


def token_log_probabilities(model: Any, batch: Batch) -> torch.Tensor:
    """Return log-probabilities (N, V), float32, at the labelled positions of a batch."""
    logits = model(**batch.inputs, use_cache=False).logits
    return torch.log_softmax(batch.places.select(logits).float(), dim=-1)


def summarize(quality: RowQuality, teacher: RowQuality, num_samples: int, seed: int = 0) -> dict[str, Any]:
    """Return means over tokens, with 95 % percentile intervals over `num_samples` bootstrap samples of the rows (Efron
    1979). The ratio to the teacher's perplexity is of the same sample for both: rows that are hard for one are hard
    for the other."""
    drawn = np.random.default_rng(seed).integers(len(quality.loss), size=(num_samples, len(quality.loss)))
    counts = quality.num_labels[drawn].sum(axis=1)
    losses, theirs = (each.loss[drawn].sum(axis=1) / counts for each in (quality, teacher))
    ratio = quality.perplexity / teacher.perplexity
    return {
        "rows": len(quality.loss),
        "tokens": int(quality.num_labels.sum()),
        "perplexity": quality.perplexity,
        "perplexity_interval": _interval(np.exp(np.minimum(losses, 700))),
        "perplexity_ratio": ratio if math.isfinite(ratio) else None,
        "perplexity_ratio_interval": _interval(np.exp(np.minimum(losses - theirs, 700))),
        "divergence": float(quality.divergence.sum() / quality.num_labels.sum()),
        "agreement": float(quality.agreeing.sum() / quality.num_labels.sum()),
    }


def _interval(drawn: np.ndarray) -> list[float]:
    return [float(edge) for edge in np.percentile(drawn, (2.5, 97.5))]
