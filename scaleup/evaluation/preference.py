"""A reward model and held-out pairs go in; its accuracy, its calibration and its bias to length come out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from scaleup.config.data import DataConfig
from scaleup.config.schema import ModelConfig, ScorerConfig
from scaleup.config.stages.evaluate import EvaluateConfig
from scaleup.data.collate import Collator
from scaleup.data.pairs import PairEncoder, pair_collator
from scaleup.data.sources import made_examples
from scaleup.data.tokenization import PairTokens
from scaleup.distributed.runtime import Runtime
from scaleup.errors import ScaleupError
from scaleup.evaluation.scores import Scored, at_places, of_rows, resampled
from scaleup.models.scoring import load_scorer
from scaleup.records.chats import as_written
from scaleup.records.preferences import Preference
from scaleup.train.job import Job
from scaleup.train.preference import pair_scores

NUM_BINS = 10


def evaluate_preferences(job: Job[EvaluateConfig]) -> dict[str, Scored]:
    """Return metrics and the scored pairs for each column of the results. Every rank must call it and gets the whole
    result. A model reads texts as its run did (reward.json).

    Raises ScaleupError as reading rows and loading models do."""
    return {name: _measured(job, name, *column) for name, column in job.config.columns.items()}


def _measured(job: Job[EvaluateConfig], name: str, key: str, model: ModelConfig) -> Scored:
    config, runtime, split = job.config, job.runtime, job.config.evaluation.split
    runtime.progress.report(f"loading {name}")
    settings = ScorerConfig(
        model, normalize=False, quantization=config.quantization, mixed_precision=config.mixed_precision
    )
    scorer = load_scorer(settings, job.plan.facts_of(key), runtime.device)
    reader = scorer.reader
    encoder = PairEncoder(reader, config.data.model_copy(update={"max_length": reader.max_length}))
    pairs = read_pairs(config.data, encoder, split)[: config.evaluation.max_samples]
    encoded = [(place, row) for place, row in enumerate(encoder(pairs)) if row is not None]
    places, rows = [place for place, _ in encoded], [row for _, row in encoded]
    if not rows:
        raise ScaleupError.of(f"data.{split}", "holds no pair that the model can tell apart", "name other rows")
    collate = pair_collator(reader.pad_id, reader.filler_id)
    runtime.progress.report(f"scores of {name}")
    scores = score_pairs(runtime, scorer.model, rows, collate, config.evaluation.batch_size)
    left_out = {f"left_out_{reason}": count for reason, count in sorted(encoder.left_out.items())}
    metrics = preference_metrics(scores, rows) | left_out
    whole = at_places(scores, places, len(pairs))
    return Scored(
        metrics | _intervals(scores, rows, config.evaluation.bootstrap_samples),
        pairs_as_written(pairs),
        pair_outputs(whole, "score"),
        margins_by_row(whole),
    )


def pairs_as_written(pairs: Sequence[Preference]) -> list[dict[str, Any]]:
    """Return the rows of predictions.jsonl that pairs stand in, without what a model makes of them."""
    return [{**vars(pair), **as_written(pair.prompt)} for pair in pairs]


def pair_outputs(values: np.ndarray, what: str) -> list[dict[str, Any] | None]:
    """Return `chosen_WHAT` and `rejected_WHAT` of values (N, 2); None where they are NaN."""
    return [
        None if np.isnan(chosen) else {f"chosen_{what}": float(chosen), f"rejected_{what}": float(rejected)}
        for chosen, rejected in values
    ]


def margins_by_row(scores: np.ndarray) -> dict[str, np.ndarray]:
    """Return of each pair, by its scores (N, 2), what `preference_metrics` takes the mean of."""
    margins = scores[:, 0] - scores[:, 1]
    chance = 1 / (1 + np.exp(-np.clip(margins, -500, 500)))
    return {"accuracy": is_positive(margins), "mean_margin": margins, "brier": (1 - chance) ** 2}


def is_positive(differences: np.ndarray) -> np.ndarray:
    """Return 1 where a difference is positive, 0 where it is negative, 1/2 of a tie, and NaN of NaN."""
    return np.asarray((np.sign(differences) + 1) / 2)


def _intervals(scores: np.ndarray, rows: Sequence[PairTokens], num_samples: int) -> dict[str, list[float]]:
    def drawn(places: np.ndarray) -> dict[str, Any]:
        return preference_metrics(scores[places], [rows[place] for place in places])

    return resampled(drawn, len(rows), num_samples)


def read_pairs(data: DataConfig, encoder: PairEncoder, split: str) -> list[Preference]:
    sources = getattr(data, split)
    return [pair for source in sources for pair in made_examples(data, source, split, encoder)]


def score_pairs(runtime: Runtime, model: Any, rows: Sequence[Any], collate: Collator, batch_size: int) -> np.ndarray:
    """Return scores (N, 2) of the chosen and the rejected response of each pair. Every rank must call it and gets all
    of them."""
    return of_rows(
        runtime, model, rows, collate, batch_size, lambda model, batch: torch.stack(pair_scores(model, batch), dim=1)
    )


def preference_metrics(scores: np.ndarray, rows: Sequence[PairTokens]) -> dict[str, Any]:
    """Return the metrics of scores (N, 2), as `score_pairs` gives them, and the pairs' lengths in tokens. A tie counts
    half.

    Calibration: p = sigmoid(difference) is the probability that the model gives to the preference. `brier` is the mean
    of (1 - p)^2; `calibration_error` is the expected calibration error (Naeini et al. 2015), over 10 bins of equal
    width. Length: accuracy on the pairs whose chosen response is longer, and shorter; the correlation of score and
    length over all responses, and that of their differences within pairs."""
    differences = scores[:, 0] - scores[:, 1]
    lengths = np.array([(len(row.chosen), len(row.rejected)) for row in rows], float)
    longer = lengths[:, 0] - lengths[:, 1]
    chance = 1 / (1 + np.exp(-np.clip(differences, -500, 500)))
    return {
        "pairs": len(rows),
        "accuracy": accuracy(differences),
        "mean_margin": float(differences.mean()),
        "brier": float(((1 - chance) ** 2).mean()),
        "calibration_error": calibration_error(chance),
        "chosen_is_longer": float((longer > 0).mean()),
        "accuracy_chosen_longer": accuracy(differences[longer > 0]),
        "accuracy_chosen_shorter": accuracy(differences[longer < 0]),
        "score_length_correlation": correlation(scores.ravel(), lengths.ravel()),
        "margin_length_correlation": correlation(differences, longer),
    }


def accuracy(differences: np.ndarray) -> float | None:
    """Return the share of positive differences; None if there are no pairs."""
    return float(is_positive(differences).mean()) if len(differences) else None


def calibration_error(chance: np.ndarray) -> float:
    """Return the mean distance of confidence, max(p, 1 - p) in [0.5, 1], from the accuracy at it, over 10 bins of
    equal width."""
    confidence, right = np.maximum(chance, 1 - chance), (chance > 0.5) + (chance == 0.5) / 2
    bins = np.minimum(((confidence - 0.5) * 2 * NUM_BINS).astype(int), NUM_BINS - 1)
    error = 0.0
    for place in np.unique(bins):
        inside = bins == place
        error += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    return float(error)


def correlation(one: np.ndarray, other: np.ndarray) -> float | None:
    """Return Pearson's correlation; None if either does not vary."""
    if len(one) < 2 or not one.std() or not other.std():
        return None
    return float(np.corrcoef(one, other)[0, 1])
