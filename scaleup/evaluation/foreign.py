"""Answers and references go in; what metrics of the library `evaluate`, and a user's own functions, make of them
comes out."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from scaleup.config.metrics import EVALUATE, is_foreign, library_metric
from scaleup.errors import ScaleupError
from scaleup.evaluation.scores import Scores, means, resampled

MOST_SAMPLES = 100
"""Bounds the bootstrap samples of figures that no sums give: each calls the metric again."""
KEY = "evaluation.metrics"


@dataclass(frozen=True)
class Answered:
    """Holds the answers to N prompts, and what they should be."""

    prompts: Sequence[str]
    answers: Sequence[str]
    references: Sequence[str]


def foreign_scores(
    metrics: Sequence[str], answered: Answered, num_samples: int, key: str = KEY
) -> tuple[list[Scores], dict[str, Any]]:
    """Return what metrics that are none of this package make of answers: scores of those that tell something of each
    row, and the figures of the others, by name.

    Raises ScaleupError at `key` for one that cannot be loaded, fails, or returns neither numbers nor a number a row."""
    scores: list[Scores] = []
    figures: dict[str, Any] = {}
    try:
        for metric in metrics:
            if not is_foreign(metric):
                continue
            compute = _library(metric) if metric.startswith(EVALUATE) else _function(metric)
            made = _called(metric, compute, answered)
            by_row = {name: value for name, value in made.items() if isinstance(value, np.ndarray)}
            if by_row:
                scores.append(means(by_row))
            whole = {name: value for name, value in made.items() if not isinstance(value, np.ndarray)}
            if whole:
                figures |= whole | _intervals(metric, compute, answered, min(num_samples, MOST_SAMPLES))
    except ScaleupError as error:  # what loads and calls a metric knows not who asks
        raise ScaleupError([replace(problem, where=key) for problem in error.problems]) from error
    return scores, figures


def _intervals(metric: str, compute: Callable[[Answered], Any], answered: Answered, num_samples: int) -> dict[str, Any]:
    def of(places: np.ndarray) -> dict[str, float]:
        parts = ([texts[place] for place in places] for texts in vars(answered).values())
        return {
            name: value
            for name, value in _called(metric, compute, Answered(*parts)).items()
            if isinstance(value, float)
        }

    return resampled(of, len(answered.answers), num_samples)


def _called(metric: str, compute: Callable[[Answered], Any], answered: Answered) -> dict[str, float | np.ndarray]:
    """Return what a metric returns, by name: a number, or an array (N,)."""
    name = metric.rpartition(":")[2].rpartition("/")[2].partition("#")[0].removesuffix(".py")
    try:
        made = compute(answered)
    except Exception as error:
        what = f"{metric} raised {type(error).__name__}: {error}"
        raise ScaleupError.of(KEY, what, "mend it, or leave it out") from error
    found: dict[str, float | np.ndarray] = {}
    for key, value in (made if isinstance(made, Mapping) else {name: made}).items():
        if isinstance(value, bool | int | float | np.number) and math.isfinite(value):
            found[str(key)] = float(value)
        elif isinstance(value, Sequence | np.ndarray) and _are_numbers(value, len(answered.answers)):
            found[str(key)] = np.asarray(value, float)
    if not found:
        what = f"{metric} returned neither a number nor one for each of {len(answered.answers)} answers"
        raise ScaleupError.of(KEY, what, "return a float, a list of floats, or a dict of them")
    return found


def _are_numbers(values: Any, count: int) -> bool:
    return len(values) == count and all(isinstance(each, bool | int | float | np.number) for each in values)


def _library(metric: str) -> Callable[[Answered], Any]:
    import evaluate

    place, configuration = library_metric(metric)
    try:
        loaded = evaluate.load(place, configuration)
    except Exception as error:  # whatever the code of a metric, or the way to it, raises
        what = f"{metric} cannot be loaded: {type(error).__name__}: {error}"
        raise ScaleupError.of(KEY, what, "name a metric of the hub, or the folder or file of one") from error
    return lambda answered: loaded.compute(predictions=list(answered.answers), references=list(answered.references))


def _function(metric: str) -> Callable[[Answered], Any]:
    file, _, name = metric.rpartition(":")
    try:
        spec = importlib.util.spec_from_file_location(Path(file).stem, file)
        assert spec is not None and spec.loader is not None, "the plan has read the file"
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        function = getattr(module, name)
    except Exception as error:
        what = f"{metric} cannot be loaded: {type(error).__name__}: {error}"
        raise ScaleupError.of(KEY, what, "mend the file") from error
    return lambda answered: function(
        predictions=list(answered.answers), references=list(answered.references), prompts=list(answered.prompts)
    )
