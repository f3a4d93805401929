"""How good a model is beside the one it comes from: perplexity with an interval, divergence, agreement."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from scaleup.data.collate import Batch
from scaleup.data.tokenization import IGNORE


@dataclass(frozen=True)
class RowQuality:
    """Of R rows, float64 (R,) each: sums over a row's labelled tokens."""

    num_labels: np.ndarray
    loss: np.ndarray
    """Nats: -log q(label)."""
    divergence: np.ndarray
    """Nats: KL(teacher || model)."""
    agreeing: np.ndarray
    """Tokens at which both find the same one the likeliest."""

    @property
    def perplexity(self) -> float:
        return _perplexity(self.loss.sum() / self.num_labels.sum())


@torch.no_grad()
def row_quality(model: Any, teacher: Any, batches: Iterable[Batch], device: torch.device) -> RowQuality:
    """Of a model, beside its teacher; for the teacher itself give the same twice. Logits exist for a batch's labelled
    tokens at a time. Padding on the right, as collators have it."""
    model.eval(), teacher.eval()
    rows = [_of_batch(model, teacher, batch.to(device)) for batch in batches]
    return RowQuality(*np.concatenate(rows, axis=1))


def _of_batch(model: Any, teacher: Any, batch: Batch) -> np.ndarray:
    """(4, B): labels, loss, divergence, agreement of each row."""
    labelled = batch.labels != IGNORE
    log_q = _log_probabilities(model, batch, labelled)
    log_p = log_q if teacher is model else _log_probabilities(teacher, batch, labelled)
    loss = -log_q.gather(1, batch.labels[labelled][:, None]).squeeze(1)
    divergence = (log_p.exp() * (log_p - log_q)).sum(dim=1)
    agreeing = (log_p.argmax(dim=1) == log_q.argmax(dim=1)).float()
    row_of = labelled.nonzero()[:, 0]
    found = [torch.ones_like(loss), loss, divergence, agreeing]
    return np.stack(
        [
            torch.zeros(len(batch.labels), dtype=torch.float64).index_add_(0, row_of.cpu(), part.double().cpu()).numpy()
            for part in found
        ]
    )


def _log_probabilities(model: Any, batch: Batch, labelled: torch.Tensor) -> torch.Tensor:
    """(N, V) float32 at the labelled positions of a batch."""
    logits = model(**batch.inputs, use_cache=False).logits
    return torch.log_softmax(logits[labelled].float(), dim=-1)


def summarize(found: RowQuality, teacher: RowQuality, num_samples: int, seed: int = 0) -> dict[str, Any]:
    """Means over tokens, each with a 95 % percentile interval over `num_samples` drawings of rows with replacement
    (Efron 1979). The ratio to the teacher's perplexity is of the same drawing for both: rows that are hard for one are
    hard for the other."""
    drawn = np.random.default_rng(seed).integers(len(found.loss), size=(num_samples, len(found.loss)))
    counts = found.num_labels[drawn].sum(axis=1)
    losses, theirs = (each.loss[drawn].sum(axis=1) / counts for each in (found, teacher))
    ratio = found.perplexity / teacher.perplexity
    return {
        "rows": len(found.loss),
        "tokens": int(found.num_labels.sum()),
        "perplexity": found.perplexity,
        "perplexity_interval": _interval(np.exp(np.minimum(losses, 700))),
        "perplexity_ratio": ratio if math.isfinite(ratio) else None,
        "perplexity_ratio_interval": _interval(np.exp(np.minimum(losses - theirs, 700))),
        "divergence": float(found.divergence.sum() / found.num_labels.sum()),
        "agreement": float(found.agreeing.sum() / found.num_labels.sum()),
    }


def _perplexity(mean_loss: float) -> float:
    return math.inf if mean_loss > 700 else math.exp(mean_loss)


def _interval(drawn: np.ndarray) -> list[float]:
    return [float(edge) for edge in np.percentile(drawn, (2.5, 97.5))]
