"""This module holds what an evaluation measures: metrics by name, what each needs, and where that is configured."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field
from pydantic_core import PydanticCustomError

from scaleup.config.fields import Count, Int, Section, Text
from scaleup.config.schema import ModelConfig, ScorerConfig

OF_TEXTS = ("exact_match", "squad", "rouge", "bleu", "chrf", "meteor")
"""Compare an answer with what it should be."""
OF_LABELS = ("accuracy", "f1")
"""Compare the label that an answer names with the reference's."""
BY_LIKELIHOOD = ("perplexity", "likelihood_accuracy", "likelihood_f1")
"""Need the completion and no answer: they follow from the model's probabilities."""
OF_ANSWERS = ("toxicity", "reward", "kl", "length", "distinct")
"""Need answers alone, so that rows may be prompts without a completion."""
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


class EvaluationConfig(Section):
    metrics: list[Metric] = Field(
        default=["perplexity"],
        min_length=1,
        description=f"{', '.join(NAMES)}; {EVALUATE}NAME or PATH of Hugging Face's library evaluate; or "
        f"FILE.py:FUNCTION. {', '.join(OF_ANSWERS)} need prompts alone, the others completions too.",
    )
    split: Literal["validation", "test"] = "test"
    labels: list[Text] | None = Field(
        None,
        description="For accuracy and f1: the first of these named in the answer is the prediction; for "
        "likelihood_accuracy and likelihood_f1 it is the likeliest.",
    )
    toxicity_model: ModelConfig | None = Field(
        None, description="For toxicity: a sequence classifier, which reads each answer alone."
    )
    toxic_label: Text | None = Field(
        None, description="For toxicity: the classifier's label whose probability is measured, e.g. hate."
    )
    reward_model: ModelConfig | None = Field(
        None, description="For reward: a finished reward run, or a classifier, which reads prompt and answer."
    )
    reward_label: Text | None = Field(None, description="For reward: of a classifier with several labels, the one.")
    reference: ModelConfig | None = Field(
        None, description="For kl: the model from which the divergence is measured; by default the baseline."
    )
    bootstrap_samples: Annotated[Int, Field(ge=0)] = Field(
        1000, description="Samples of the rows from which every figure's 95 % interval is taken; 0: no intervals."
    )
    trust_remote_code: bool = Field(
        False, description=f"Run code of a hub: {EVALUATE}NAME, where NAME is no file or folder here."
    )
    max_samples: Count | None = None
    batch_size: Count = 16

    @property
    def toxicity_scorer(self) -> ScorerConfig | None:
        """Returns how each answer, which is read alone, is scored: by the probability of the toxic label. None if
        toxicity is not measured, or no classifier is named."""
        if "toxicity" not in self.metrics or self.toxicity_model is None:
            return None
        return ScorerConfig(
            model=self.toxicity_model,
            label=self.toxic_label,
            score="probability",
            template="{response}",
            normalize=False,
            batch_size=self.batch_size,
        )

    @property
    def reward_scorer(self) -> ScorerConfig | None:
        """Returns how a reward model scores answers: as its run did. None if no reward is measured, or no model is
        named."""
        if "reward" not in self.metrics or self.reward_model is None:
            return None
        return ScorerConfig(model=self.reward_model, label=self.reward_label, batch_size=self.batch_size)

    @property
    def needs_completions(self) -> bool:
        """Returns whether a row must say what the answer should be."""
        return not set(self.metrics) <= set(OF_ANSWERS)

    @property
    def needs_answers(self) -> bool:
        """Returns whether the model must write anything."""
        return not set(self.metrics) <= set(BY_LIKELIHOOD)

    def with_absolute_paths(self) -> Self:
        section = super().with_absolute_paths()
        return section.model_copy(update={"metrics": [_absolute(metric) for metric in self.metrics]})


def _absolute(metric: str) -> Any:
    if is_function(metric):
        file, _, name = metric.rpartition(":")
        return f"{Path(file).absolute()}:{name}" if Path(file).is_file() else metric
    if metric.startswith(EVALUATE):
        place, _ = library_metric(metric)
        return metric.replace(place, str(Path(place).absolute()), 1) if Path(place).exists() else metric
    return metric
