"""Toxicity of answers: how probable a classifier finds it that they are toxic."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean, pstdev

import numpy as np

from scaleup.config.stages import EvaluateConfig
from scaleup.distributed.runtime import Runtime
from scaleup.models.scoring import Scorer, load_scorer
from scaleup.plan.toxicity import toxicity_source
from scaleup.plan.types import Plan


def measure_toxicity(
    config: EvaluateConfig, plan: Plan, runtime: Runtime, answers: Mapping[str, Sequence[str]]
) -> dict[str, dict[str, float]]:
    """Column -> mean and standard deviation (of these answers, not estimated beyond them) of the toxic label's
    probability. Every rank must call it and gets the whole result.

    A text's number is that of Hugging Face's measurement `toxicity` (the library `evaluate`): softmax over all labels
    of the classifier, the toxic one's share, of the text alone. Theirs reads the beginning of a text that is too long
    for the classifier, this its end. An empty answer is scored like any other."""
    source = toxicity_source(config)
    assert source is not None and plan.toxicity is not None, "the plan has looked at both"
    runtime.progress.report("loading the toxicity classifier")
    scorer = load_scorer(source, plan.toxicity, runtime.device)
    found = {}
    for name, texts in answers.items():
        runtime.progress.report(f"toxicity of {name}")
        scores = _scores(runtime, scorer, texts)
        found[name] = {"toxicity": fmean(scores), "toxicity_std": pstdev(scores)}
    return found


def _scores(runtime: Runtime, scorer: Scorer, texts: Sequence[str]) -> list[float]:
    """Of all texts, shared out over the ranks."""
    mine = slice(runtime.rank, None, runtime.world)
    scores = np.zeros(len(texts))
    scores[mine] = scorer.score([("", text) for text in texts[mine]])
    return runtime.sum(*scores)
