"""This module is a metric of Hugging Face's library `evaluate`, with a configuration for each of this package's metrics
that compare answers:

    evaluate.load("scaleup/evaluation/answer_metrics.py", "rouge").compute(predictions=[...], references=[...])

It names the package's own modules as any other program does: the library runs a copy of this file elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import datasets
import evaluate

from scaleup.evaluation.metrics import ALONE, COMPARED, score_answers

DESCRIPTION = """Scores of answers, as `scaleup evaluate` gives them. `labels` are those of accuracy and f1;
`num_samples` counts the bootstrap samples from which `NAME_interval` is taken."""
CONFIGURATIONS = ("accuracy", "f1", *COMPARED, *ALONE)


class AnswerMetric(evaluate.Metric):
    """Computes one of this package's metrics."""

    def _info(self) -> evaluate.MetricInfo:
        if self.config_name not in CONFIGURATIONS:
            raise KeyError(f"name one of {', '.join(CONFIGURATIONS)}")
        columns = ["predictions"] if self.config_name in ALONE else ["predictions", "references"]
        features = datasets.Features({column: datasets.Value("string") for column in columns})
        return evaluate.MetricInfo(
            description=DESCRIPTION, citation="", inputs_description=", ".join(columns), features=features
        )

    def _compute(
        self,
        predictions: Sequence[str],
        references: Sequence[str] | None = None,
        labels: Sequence[str] | None = None,
        num_samples: int = 0,
    ) -> dict[str, Any]:
        texts = references if references is not None else [""] * len(predictions)
        scores = score_answers([self.config_name], predictions, texts, labels)
        return {name: value for each in scores for name, value in each.result(num_samples).items()}
