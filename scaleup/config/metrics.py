"""This module holds the metrics that can be measured, by name, what each needs, and where code of others is named."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator
from pydantic_core import PydanticCustomError

from scaleup.config.fields import Text

OF_TEXTS = ("exact_match", "squad", "rouge", "bleu", "chrf", "meteor")
"""Compare an answer with what it should be."""
OF_LABELS = ("accuracy", "f1")
"""Compare the label that an answer names with the reference's."""
BY_LIKELIHOOD = ("perplexity", "likelihood_accuracy", "likelihood_f1")
"""Need the completion and no answer: they follow from the model's probabilities."""
OF_ANSWERS = ("toxicity", "reward", "kl", "judge", "length", "distinct")
"""Need answers alone, so that rows may be prompts without a completion."""
FIGURES = {
    "accuracy": ("accuracy",),
    "f1": ("f1_macro", "f1_micro"),
    "exact_match": ("exact_match",),
    "squad": ("squad_exact_match", "squad_f1"),
    "rouge": ("rouge1", "rouge2", "rougeL", "rougeLsum"),
    "bleu": ("bleu",),
    "chrf": ("chrf",),
    "meteor": ("meteor",),
    "length": ("length_words", "length_characters"),
    "distinct": ("distinct_1", "distinct_2"),
}
"""Maps each metric that texts alone tell -> its figures: a model in training can be measured by them."""
NAMES = ("perplexity", *OF_LABELS, *BY_LIKELIHOOD[1:], *OF_TEXTS, *OF_ANSWERS)
EVALUATE = "evaluate:"
"""Begins the name of a metric of Hugging Face's library `evaluate`."""


def is_function(metric: str) -> bool:
    return re.fullmatch(r".+\.py:[A-Za-z_]\w*", metric) is not None


def is_foreign(metric: str) -> bool:
    """Tells whether a metric is none of this package."""
    return metric.startswith(EVALUATE) or is_function(metric)


def library_metric(metric: str) -> tuple[str, str | None]:
    """Returns name or path, and configuration, of a metric of the library `evaluate`: evaluate:NAME[#CONFIGURATION]."""
    name, _, configuration = metric.removeprefix(EVALUATE).partition("#")
    return name, configuration or None


def _known(metric: str) -> str:
    if metric not in NAMES and (not is_foreign(metric) or metric == EVALUATE):
        expected = ", ".join(f"'{name}'" for name in (*NAMES, f"{EVALUATE}NAME_OR_PATH", "FILE.py:FUNCTION"))
        raise PydanticCustomError("literal_error", "should be one of {expected}", {"expected": expected})
    return metric


Metric = Annotated[Text, AfterValidator(_known)]


def absolute_metric(metric: str) -> str:
    """Returns a metric with the absolute path of its file or folder, where it has one."""
    if is_function(metric):
        file, _, name = metric.rpartition(":")
        return f"{Path(file).absolute()}:{name}" if Path(file).is_file() else metric
    if metric.startswith(EVALUATE):
        place, _ = library_metric(metric)
        return metric.replace(place, str(Path(place).absolute()), 1) if Path(place).exists() else metric
    return metric
