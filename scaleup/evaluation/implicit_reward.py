"""A language model and held-out pairs go in; how often it takes the chosen response for the likelier one comes out, and
how often that became likelier next to the baseline: the accuracy of its implicit reward (Rafailov et al. 2023)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from scaleup.config.schema import ModelConfig
from scaleup.config.stages.evaluate import EvaluateConfig
from scaleup.data.collate import Batch
from scaleup.data.preferences import PreferenceEncoder, preference_collator
from scaleup.data.sources import made_examples
from scaleup.data.tokenization import IGNORE, Encoder, PreferenceTokens, own_template
from scaleup.errors import ScaleupError
from scaleup.evaluation.likelihood import response_logps
from scaleup.evaluation.preference import accuracy, is_positive, pair_outputs, pairs_as_written
from scaleup.evaluation.scores import Scored, of_rows, resampled
from scaleup.models.adapted import load_finished
from scaleup.models.load import load_tokenizer
from scaleup.records.preferences import Preference
from scaleup.train.job import Job
from scaleup.train.reading import language_collator
from scaleup.train.token_head import swap_token_head


@dataclass(frozen=True)
class Likelihoods:
    """Holds the pairs that a model reads, and by their places (N) what it makes of both responses of each."""

    pairs: list[Preference]
    left_out: dict[str, int]
    logps: np.ndarray
    """Holds log-probabilities (N, 2) of the responses, in nats; NaN of a pair that is left out."""
    lengths: np.ndarray
    """Counts the tokens (N, 2) that these are sums over."""

    def drawn(self, places: np.ndarray) -> Likelihoods:
        """Return those of a sample of the pairs."""
        return replace(self, logps=self.logps[places], lengths=self.lengths[places])


def evaluate_likelihoods(job: Job[EvaluateConfig]) -> dict[str, Scored]:
    """Return metrics and the pairs with their log-probabilities for each column of the results, next to the first of
    them where there are several. Every rank must call it and gets the whole result.

    Raises ScaleupError as reading rows and loading models do."""
    found = {name: _measured(job, name, *column) for name, column in job.config.columns.items()}
    baseline, num_samples = found.get("baseline"), job.config.evaluation.bootstrap_samples
    return {
        name: Scored(
            _with_intervals(of, baseline, num_samples),
            pairs_as_written(of.pairs),
            pair_outputs(of.logps, "logp"),
            _by_row(of, baseline),
        )
        for name, of in found.items()
    }


def _with_intervals(of: Likelihoods, baseline: Likelihoods | None, num_samples: int) -> dict[str, Any]:
    def drawn(places: np.ndarray) -> dict[str, Any]:
        return _metrics(of.drawn(places), baseline.drawn(places) if baseline else None)

    return _metrics(of, baseline) | resampled(drawn, len(of.pairs), num_samples)


def _measured(job: Job[EvaluateConfig], name: str, key: str, model: ModelConfig) -> Likelihoods:
    config, runtime, split = job.config, job.runtime, job.config.evaluation.split
    facts, reads_own = job.plan.facts_of(key), key == "baseline" and config.baseline_chat_template == "own"
    runtime.progress.report(f"loading {name}")
    loaded = load_finished(model, facts, config.quantization, config.mixed_precision, runtime.device)
    swap_token_head(loaded)
    tokenizer = load_tokenizer(model, facts.tokenizer_at)
    data = own_template(tokenizer, config.data) if reads_own else config.data
    encoder = PreferenceEncoder(Encoder(tokenizer, facts.task, data))
    pairs = [pair for source in getattr(data, split) for pair in made_examples(data, source, split, encoder)]
    pairs = pairs[: config.evaluation.max_samples]
    rows = encoder(pairs)
    known = [place for place, row in enumerate(rows) if row is not None]
    if not known:
        raise ScaleupError.of(f"data.{split}", "holds no pair that the model can tell apart", "name other rows")
    collate = preference_collator(language_collator(loaded, tokenizer, facts.task, False))
    runtime.progress.report(f"likelihoods of {name}")
    kept: list[PreferenceTokens] = [row for row in rows if row is not None]
    logps, lengths = np.full((len(pairs), 2), np.nan), np.ones((len(pairs), 2))
    logps[known] = of_rows(runtime, loaded, kept, collate, config.evaluation.batch_size, pair_logps)
    lengths[known] = [[int((side.labels != IGNORE).sum()) for side in row.responses] for row in kept]
    return Likelihoods(pairs, dict(encoder.left_out), logps, lengths)


def pair_logps(model: Any, batch: Batch) -> torch.Tensor:
    """Return log-probabilities (B, 2) of the responses of B pairs, summed over their tokens, in nats."""
    return response_logps(model, batch).view(2, -1).T


def _metrics(of: Likelihoods, baseline: Likelihoods | None) -> dict[str, Any]:
    """Return the metrics of a column. Log-probabilities are in nats: sums over a response, or means over its tokens. A
    tie counts half. What is told next to the baseline is of the pairs that both read."""
    known = ~np.isnan(of.logps[:, 0])
    logps, means = of.logps[known], of.logps[known] / of.lengths[known]
    metrics = {
        "pairs": len(logps),
        "likelier": accuracy(logps[:, 0] - logps[:, 1]),
        "likelier_a_token": accuracy(means[:, 0] - means[:, 1]),
        "logps_chosen": float(logps[:, 0].mean()),
        "logps_rejected": float(logps[:, 1].mean()),
        **{f"left_out_{reason}": count for reason, count in sorted(of.left_out.items())},
    }
    if baseline is None:
        return metrics
    ratios = of.logps - baseline.logps
    margins = (ratios[:, 0] - ratios[:, 1])[~np.isnan(ratios[:, 0])]
    shown = {"reward_accuracy": accuracy(margins), "reward_margin": float(margins.mean()) if len(margins) else None}
    return metrics | shown


def _by_row(of: Likelihoods, baseline: Likelihoods | None) -> dict[str, np.ndarray]:
    """Return of each pair what `_metrics` takes the mean of."""
    means = of.logps / of.lengths
    told = {
        "likelier": is_positive(of.logps[:, 0] - of.logps[:, 1]),
        "likelier_a_token": is_positive(means[:, 0] - means[:, 1]),
        "logps_chosen": of.logps[:, 0],
        "logps_rejected": of.logps[:, 1],
    }
    if baseline is None:
        return told
    ratios = of.logps - baseline.logps
    margins = ratios[:, 0] - ratios[:, 1]
    return told | {"reward_accuracy": is_positive(margins), "reward_margin": margins}
