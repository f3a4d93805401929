"""Generated answers go in; how probable a classifier finds it that they are toxic comes out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean, pstdev

import numpy as np

from scaleup.config.stages.evaluate import EvaluateConfig
from scaleup.distributed.runtime import Runtime
from scaleup.models.scoring import Scorer, load_scorer
from scaleup.train.job import Job


def measure_toxicity(job: Job[EvaluateConfig], answers: Mapping[str, Sequence[str]]) -> dict[str, dict[str, float]]:
    """Return, for each column, mean and (population) standard deviation of the toxic label's probability. Every rank
    must call it and gets the whole result.

    A text's number is that of Hugging Face's measurement `toxicity` (the library `evaluate`): softmax over all labels
    of the classifier, the toxic one's share, or its sigmoid where a text may have several, of the text alone. Theirs
    reads the beginning of a text that is too long for the classifier, this its end. An empty answer is scored
    like any other."""
    config, plan, runtime = job.config, job.plan, job.runtime
    settings = config.evaluation.toxicity_scorer
    assert settings is not None and "evaluation.toxicity_model" in plan.models, "the plan has looked at both"
    runtime.progress.report("loading the toxicity classifier")
    scorer = load_scorer(settings, plan.models["evaluation.toxicity_model"], runtime.device)
    metrics = {}
    for name, texts in answers.items():
        runtime.progress.report(f"toxicity of {name}")
        scores = _scores(runtime, scorer, texts)
        metrics[name] = {"toxicity": fmean(scores), "toxicity_std": pstdev(scores)}
    return metrics


def _scores(runtime: Runtime, scorer: Scorer, texts: Sequence[str]) -> list[float]:
    """Score all texts, shared out over the ranks; every rank gets all scores."""
    mine = slice(runtime.rank, None, runtime.world)
    scores = np.zeros(len(texts))
    scores[mine] = scorer.score([("", text) for text in texts[mine]])
    return runtime.sum(*scores)
