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
from scaleup.evaluation.preference import correlation
from scaleup.evaluation.scores import Scored, at_places, of_rows, resampled
from scaleup.models.adapted import load_finished
from scaleup.models.classifier import classify
from scaleup.models.load import load_tokenizer
from scaleup.records.labels import Target, Targets
from scaleup.train.classify import class_losses
from scaleup.train.job import Job
from scaleup.train.reading import reading_of


def evaluate_classifiers(job: Job[EvaluateConfig]) -> dict[str, Scored]:
    """Return `class_metrics` and the predictions for each column of the results. Every rank must call it and gets the
    whole result."""
    return {name: _measured(job, name, *column) for name, column in job.config.columns.items()}


def _measured(job: Job[EvaluateConfig], name: str, key: str, model: ModelConfig) -> Scored:
    config, runtime, facts = job.config, job.runtime, job.plan.facts_of(key)
    targets = facts.targets
    runtime.progress.report(f"loading {name}")
    loaded = load_finished(model, facts, config.quantization, config.mixed_precision, runtime.device)
    tokenizer = load_tokenizer(model, facts.tokenizer_at)
    reading = reading_of(facts, tokenizer, config.data)
    split = config.evaluation.split
    sources, encoder = getattr(config.data, split), reading.encoder
    examples = [row for source in sources for row in made_examples(config.data, source, split, encoder)]
    examples = examples[: config.evaluation.max_samples]
    encoded = [(place, row) for place, row in enumerate(encoder(examples)) if row is not None]
    places, rows = [place for place, _ in encoded], [row for _, row in encoded]
    if not rows:
        raise ScaleupError.of(f"data.{split}", f"no row fits max_length {config.data.max_length}", "raise it")
    runtime.progress.report(f"classes of {name}")
    logits = logits_of(runtime, loaded, reading.collator(loaded), rows, config.evaluation.batch_size)

    def drawn(places: np.ndarray) -> dict[str, Any]:
        return class_metrics(logits[places], [rows[place] for place in places], targets)

    intervals = resampled(drawn, len(rows), config.evaluation.bootstrap_samples)
    outputs: list[dict[str, Any] | None] = [None] * len(examples)
    for place, one in zip(places, logits, strict=True):
        outputs[place] = _prediction(one, targets)
    return Scored(
        class_metrics(logits, rows, targets) | intervals,
        [{"text": text, "label": _label(label, targets)} for text, label in examples],
        outputs,
        {
            metric: at_places(values, places, len(examples))
            for metric, values in class_scores(logits, rows, targets).items()
        },
    )


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
    scores = class_scores(logits, rows, targets)
    shared = {"rows": len(rows), "loss": float(scores["loss"].mean())}
    if targets.problem == "regression":
        return shared | _regression_metrics(logits, labels.astype(float))
    if targets.problem == "multi_label":
        predicted, true = logits > 0, labels > 0.5
        hits = (predicted & true).sum(axis=0)
        counts = predicted.sum(axis=0) + true.sum(axis=0)
        return shared | {"accuracy": float(scores["accuracy"].mean()), **_f1(hits, counts)}
    confusion = np.zeros((len(targets.names),) * 2, int)
    np.add.at(confusion, (labels, logits.argmax(axis=1)), 1)
    counts = confusion.sum(axis=0) + confusion.sum(axis=1)
    hits = confusion.diagonal()
    named = {
        true: dict(zip(targets.names, map(int, row), strict=True))
        for true, row in zip(targets.names, confusion, strict=True)
    }
    shared |= {"accuracy": float(scores["accuracy"].mean()), **_f1(hits[counts > 0], counts[counts > 0])}
    return shared | {"matthews": matthews(confusion), "confusion": named}


def class_scores(logits: np.ndarray, rows: Sequence[Any], targets: Targets) -> dict[str, np.ndarray]:
    """Return what is told of each row (N,), of logits (N, L): its `loss`, and whether it is right (`accuracy`), or
    `mse` and `mae`, means over its numbers."""
    labels = np.array([row.label for row in rows])
    losses = class_losses(torch.from_numpy(logits), torch.from_numpy(labels), targets.problem).numpy()
    if targets.problem == "regression":
        errors = logits - labels.astype(float)
        return {"loss": losses, "mse": (errors**2).mean(axis=1), "mae": np.abs(errors).mean(axis=1)}
    if targets.problem == "multi_label":
        return {"loss": losses, "accuracy": ((logits > 0) == (labels > 0.5)).all(axis=1).astype(float)}
    return {"loss": losses, "accuracy": (logits.argmax(axis=1) == labels).astype(float)}


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


def _prediction(logits: np.ndarray, targets: Targets) -> dict[str, Any]:
    """Return what a classifier makes of a row: of classes with their probabilities by name."""
    if targets.problem == "regression":
        return {"prediction": _plain(tuple(logits.tolist()))}
    if targets.problem == "single_label":
        chances = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
        predicted: Any = targets.names[int(logits.argmax())]
    else:
        chances = 1 / (1 + np.exp(-np.clip(logits, -500, 500)))
        predicted = [name for name, value in zip(targets.names, logits, strict=True) if value > 0]
    return {"prediction": predicted, "probabilities": dict(zip(targets.names, chances.tolist(), strict=True))}


def _label(label: Target, targets: Targets) -> Any:
    """Return a row's label by name, the names of all labels that are there, or its numbers."""
    if targets.problem == "regression":
        return _plain(label)
    if targets.problem == "single_label":
        return targets.names[label] if isinstance(label, int) else None
    return [name for name, value in zip(targets.names, np.atleast_1d(label), strict=True) if value]


def _plain(numbers: Target) -> Any:
    return numbers[0] if isinstance(numbers, tuple) and len(numbers) == 1 else numbers
