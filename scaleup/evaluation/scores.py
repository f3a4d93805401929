"""This module holds what a metric makes of rows, the same on any number of processes, and how sure its figures are: by
bootstrap samples of the rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from scaleup.data.collate import Batch, Collator
from scaleup.data.loader import eval_batches
from scaleup.distributed.runtime import Runtime
from scaleup.reports.comparison import sample_counts


@dataclass(frozen=True)
class Scores:
    """Holds what a metric makes of N rows, in their order."""

    sums: np.ndarray
    """Holds (N, K): of each row what is added up over rows; 0 of rows that are left out."""
    figures: Callable[[np.ndarray], Mapping[str, np.ndarray]]
    """Maps B sums (B, K) -> the metric's figures (B,) by name; NaN where there is nothing to tell."""
    by_row: Mapping[str, np.ndarray] = field(default_factory=dict)
    """Holds what is told of each row (N,), by name; NaN of rows that are left out."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """Holds what else there is to know, and has no interval: how many rows were left out, what cut the words."""

    def result(self, num_samples: int) -> dict[str, Any]:
        """Return the figures, each with `NAME_interval` if `num_samples` is not 0, and the facts. See `intervals`."""
        of_all = {name: float(values[0]) for name, values in self.figures(self.sums.sum(axis=0)[None]).items()}
        known = {name: value for name, value in of_all.items() if not np.isnan(value)}
        counts = sample_counts(len(self.sums), num_samples)
        drawn = [self.figures(part @ self.sums) for part in counts]
        return _with_intervals(known, drawn) | dict(self.facts)


def means(by_row: Mapping[str, np.ndarray], factor: float = 1.0, **facts: Any) -> Scores:
    """Return scores whose figures are means over rows, times `factor`; rows that are NaN are left out."""
    values = np.stack([np.asarray(each, float) for each in by_row.values()], axis=1)
    known = ~np.isnan(values)
    sums = np.concatenate([np.where(known, values, 0.0) * factor, known], axis=1)
    names = list(by_row)

    def figures(sums: np.ndarray) -> dict[str, np.ndarray]:
        return dict(zip(names, ratio(sums[:, : len(names)], sums[:, len(names) :]).T, strict=True))

    return Scores(sums, figures, {name: factor * np.asarray(each, float) for name, each in by_row.items()}, facts)


def ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """Return above / below; NaN where below is 0."""
    return np.divide(above, below, out=np.full(np.broadcast(above, below).shape, np.nan), where=below != 0)


def resampled(
    figures: Callable[[np.ndarray], Mapping[str, Any]], num_rows: int, num_samples: int
) -> dict[str, list[float]]:
    """Return `NAME_interval` of each figure that is a number, where figures are no function of sums: `figures` maps the
    places of rows, one as often as it was drawn, to them by name."""
    counts = (row for part in sample_counts(num_rows, num_samples) for row in part)
    drawn = [figures(np.repeat(np.arange(num_rows), count.astype(int))) for count in counts]
    whole = figures(np.arange(num_rows)) if drawn else {}
    numbers = {name: float(value) for name, value in whole.items() if isinstance(value, float)}
    samples = [{name: np.array([_number(sample.get(name))]) for name in numbers} for sample in drawn]
    return {name: value for name, value in _with_intervals(numbers, samples).items() if name not in numbers}


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else np.nan


def _with_intervals(known: Mapping[str, float], drawn: Sequence[Mapping[str, np.ndarray]]) -> dict[str, Any]:
    """Return the figures, each followed by the 2.5th and 97.5th percentile of its samples."""
    result: dict[str, Any] = {}
    for name, value in known.items():
        result[name] = value
        values = np.concatenate([each[name] for each in drawn]) if drawn else np.empty(0)
        if (values := values[~np.isnan(values)]).size:
            result[f"{name}_interval"] = [float(edge) for edge in np.percentile(values, (2.5, 97.5))]
    return result


@dataclass(frozen=True)
class Scored:
    """Holds what was measured of one model on N rows that it scores: texts with a class, or pairs of responses."""

    metrics: dict[str, Any]
    rows: list[dict[str, Any]]
    """Holds the rows as they stand in the data."""
    outputs: list[dict[str, Any] | None]
    """Holds what the model makes of each row; None of rows that it leaves out."""
    by_row: Mapping[str, np.ndarray]
    """Holds what the metrics tell of each row (N,), by name; NaN of rows that are left out."""


def at_places(values: np.ndarray, places: Sequence[int], num_rows: int) -> np.ndarray:
    """Return (num_rows, ...) with `values` at the places, and NaN elsewhere."""
    whole = np.full((num_rows, *values.shape[1:]), np.nan)
    whole[list(places)] = values
    return whole


def of_row(by_row: Mapping[str, np.ndarray], place: int) -> dict[str, float | None]:
    """Return what metrics tell of the row at a place, by name; None where it is left out."""
    return {name: None if np.isnan(each[place]) else float(each[place]) for name, each in by_row.items()}


@torch.no_grad()
def of_rows(
    runtime: Runtime,
    model: Any,
    rows: Sequence[Any],
    collate: Collator,
    batch_size: int,
    of: Callable[[Any, Batch], torch.Tensor],
) -> np.ndarray:
    """Return what `of(model, batch)`, (B, ...), makes of each row, in float64 (N, ...). Rows are shared out; every rank
    must call it and gets all of them."""
    model.eval()
    parts: dict[int, torch.Tensor] = {}
    for number, batch in enumerate(eval_batches(rows, collate, batch_size, runtime.rank, runtime.world)):
        with runtime.accelerator.autocast():
            part = of(model, batch.to(runtime.device))
        parts[(number * runtime.world + runtime.rank) * batch_size] = part.double().cpu()
    whole = torch.zeros((len(rows), *next(iter(parts.values())).shape[1:]), dtype=torch.float64)
    for first, part in parts.items():
        whole[first : first + batch_size] = part[: max(0, len(rows) - first)]
    return runtime.sum_tensor(whole).numpy()
