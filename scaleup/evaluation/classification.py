"""A classifier and held-out texts with labels go in; how well it tells them comes out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from scaleup.config.schema import ModelConfig
from scaleup.config.stages.evaluate import EvaluateConfig
from scaleup.data.collate import Collator
from scaleup.data.sources import made_examples
from scaleup.data.tokenization import TokenRow
from scaleup.distributed.runtime import Runtime
from scaleup.errors import ScaleupError
from scaleup.evaluation.preference import Results, correlation
from scaleup.evaluation.scores import of_rows, resampled
from scaleup.models.adapted import load_finished
from scaleup.models.classifier import classify
from scaleup.models.load import load_tokenizer
from scaleup.plan.facts import ModelFacts
from scaleup.records.labels import Target, Targets
from scaleup.train.classify import class_losses
from scaleup.train.job import Job
from scaleup.train.reading import reading_of


def evaluate_classifiers(job: Job[EvaluateConfig]) -> Results:
    """Return `class_metrics` and the predictions for each column of the results. Every rank must call it and gets the
    whole result."""
    config, plan = job.config, job.plan
    columns = {"model": (config.model, plan.model)}
    if config.baseline is not None:
        columns = {"baseline": (config.baseline, plan.models["baseline"]), **columns}
    return {name: _measure(job, name, model, facts) for name, (model, facts) in columns.items()}


def _measure(
    job: Job[EvaluateConfig], name: str, model: ModelConfig, facts: ModelFacts
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    config, runtime, targets = job.config, job.runtime, facts.targets
    runtime.progress.report(f"loading {name}")
    loaded = load_finished(model, facts, config.quantization, config.mixed_precision, runtime.device)
    tokenizer = load_tokenizer(model, facts.tokenizer_at)
    reading = reading_of(facts, tokenizer, config.data)
    split = config.evaluation.split
    sources, encoder = getattr(config.data, split), reading.encoder
    examples = [row for source in sources for row in made_examples(config.data, source, split, encoder)]
    examples = examples[: config.evaluation.max_samples]
    encoded = enumerate(zip(examples, encoder(examples), strict=True))
    read = [(number, example, row) for number, (example, row) in encoded if row is not None]
    if not read:
        raise ScaleupError.of(f"data.{split}", f"no row fits max_length {config.data.max_length}", "raise it")
    rows = [row for _, _, row in read]
    runtime.progress.report(f"classes of {name}")
    logits = logits_of(runtime, loaded, reading.collator(loaded), rows, config.evaluation.batch_size)
    scored = [
        {"id": number, **_scored(text, label, one, targets)}
        for (number, (text, label), _), one in zip(read, logits, strict=True)
    ]

    def drawn(places: np.ndarray) -> dict[str, Any]:
        return class_metrics(logits[places], [rows[place] for place in places], targets)

    intervals = resampled(drawn, len(rows), config.evaluation.bootstrap_samples)
    return class_metrics(logits, rows, targets) | intervals, scored


def logits_of(runtime: Runtime, model: Any, collate: Collator, rows: Sequence[TokenRow], batch_size: int) -> np.ndarray:
    """Return the logits (N, L) of rows, in float64. Every rank must call it and gets all of them."""
    return of_rows(runtime, model, rows, collate, batch_size, lambda model, batch: classify(model, batch.inputs))


def class_metrics(logits: np.ndarray, rows: Sequence[Any], targets: Targets) -> dict[str, Any]:
    """Return metrics of logits (N, L) of rows, by scikit-learn's formulas: the number of `rows`, the mean `loss`, and

    - of single_label `accuracy`, `f1_macro` over the labels that are there or predicted, `f1_micro`, which is the
      accuracy, `matthews` (Gorodkin 2004), and `confusion`: true label -> predicted label -> how many rows;
    - of multi_label, where a label is predicted whose probability is above 1/2, `accuracy`, the share of rows all of
      whose labels are right, `f1_macro` over all labels, and `f1_micro`;
    - of regression `mse`, `mae`, and the correlations of `pearson` and `spearman`, the mean over the outputs; None
      where one does not vary."""
    labels = np.array([row.label for row in rows])
    losses = class_losses(torch.from_numpy(logits), torch.from_numpy(labels), targets.problem)
    shared = {"rows": len(rows), "loss": float(losses.mean())}
    if targets.problem == "regression":
        return shared | _regression_metrics(logits, labels.astype(float))
    if targets.problem == "multi_label":
        predicted, true = logits > 0, labels > 0.5
        hits = (predicted & true).sum(axis=0)
        counts = predicted.sum(axis=0) + true.sum(axis=0)
        exact = float((predicted == true).all(axis=1).mean())
        return shared | {"accuracy": exact, **_f1(hits, counts)}
    confusion = np.zeros((len(targets.names),) * 2, int)
    np.add.at(confusion, (labels, logits.argmax(axis=1)), 1)
    counts = confusion.sum(axis=0) + confusion.sum(axis=1)
    hits = confusion.diagonal()
    named = {
        true: dict(zip(targets.names, map(int, row), strict=True))
        for true, row in zip(targets.names, confusion, strict=True)
    }
    accuracy = float(hits.sum() / len(rows))
    scores = {**_f1(hits[counts > 0], counts[counts > 0]), "matthews": matthews(confusion)}
    return shared | {"accuracy": accuracy, **scores, "confusion": named}


def _f1(hits: np.ndarray, counts: np.ndarray) -> dict[str, float]:
    """Return F1 = 2 hits / (predicted + true) of labels, `counts` the latter: the mean over them, and of all together;
    0 where there is nothing."""
    each = 2 * hits / np.maximum(counts, 1)
    return {"f1_macro": float(each.mean()), "f1_micro": float(2 * hits.sum() / max(counts.sum(), 1))}


def matthews(confusion: np.ndarray) -> float:
    """Return Matthews' correlation coefficient of a table (true, predicted), for any number of classes (Gorodkin 2004);
    0 where all rows are of one class, or predicted as one."""
    table = confusion.astype(float)
    total, right = table.sum(), table.trace()
    true, predicted = table.sum(axis=1), table.sum(axis=0)
    spread = np.sqrt(total**2 - (true**2).sum()) * np.sqrt(total**2 - (predicted**2).sum())
    return float((right * total - true @ predicted) / spread) if spread else 0.0


def _regression_metrics(predicted: np.ndarray, true: np.ndarray) -> dict[str, float | None]:
    columns = list(zip(predicted.T, true.T, strict=True))
    return {
        "mse": float(((predicted - true) ** 2).mean()),
        "mae": float(np.abs(predicted - true).mean()),
        "pearson": _mean([correlation(one, other) for one, other in columns]),
        "spearman": _mean([correlation(ranks(one), ranks(other)) for one, other in columns]),
    }


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if len(known) == len(values) else None


def ranks(values: np.ndarray) -> np.ndarray:
    """Return the rank of each value, from 1; equal ones share the mean of theirs."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return np.asarray((last - (counts - 1) / 2)[place])


def scalars(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Return the metrics that are a number each: without the confusion table and the intervals."""
    return {name: value for name, value in metrics.items() if not isinstance(value, dict | list)}


def _scored(text: str, label: Target, logits: np.ndarray, targets: Targets) -> dict[str, Any]:
    """Return a row of predictions: of classes with their probabilities by name."""
    if targets.problem == "regression":
        return {"text": text, "label": _plain(label), "prediction": _plain(tuple(logits.tolist()))}
    if targets.problem == "single_label":
        chances = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
        true: Any = targets.names[label] if isinstance(label, int) else None
        predicted: Any = targets.names[int(logits.argmax())]
    else:
        chances = 1 / (1 + np.exp(-np.clip(logits, -500, 500)))
        true = [name for name, value in zip(targets.names, np.atleast_1d(label), strict=True) if value]
        predicted = [name for name, value in zip(targets.names, logits, strict=True) if value > 0]
    probabilities = dict(zip(targets.names, chances.tolist(), strict=True))
    return {"text": text, "label": true, "prediction": predicted, "probabilities": probabilities}


def _plain(numbers: Target) -> Any:
    return numbers[0] if isinstance(numbers, tuple) and len(numbers) == 1 else numbers
