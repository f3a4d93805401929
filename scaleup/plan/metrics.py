"""This module checks the metrics of an evaluation: what each needs of the config, of rows and of this machine."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path

from scaleup.config.evaluation import EVALUATE, OF_LABELS, EvaluationConfig, is_function, library_metric
from scaleup.config.run import RunConfig
from scaleup.errors import Problem
from scaleup.plan.machine import Machine
from scaleup.plan.reward_functions import definition_problems
from scaleup.plan.scorers import scorer_problems

METRICS = "evaluation.metrics"
WITH_LABELS = (*OF_LABELS, "likelihood_accuracy", "likelihood_f1")
MODULES = {"bleu": "sacrebleu", "chrf": "sacrebleu", "rouge": "rouge_score", "meteor": "nltk", EVALUATE: "evaluate"}
"""Maps a metric -> the module that computes it."""


def evaluation_problems(
    config: RunConfig, evaluation: EvaluationConfig, reads_prompts: bool, machine: Machine
) -> Iterator[Problem]:
    """Yields metrics that need what the config does not give; `reads_prompts`: rows need no completion."""
    if labelled := [metric for metric in evaluation.metrics if metric in WITH_LABELS]:
        if not evaluation.labels:
            what = f"is needed for {labelled[0]}"
            yield Problem("evaluation.labels", what, "list the labels, e.g. [positive, negative]")
        elif len(set(evaluation.labels)) < len(evaluation.labels):
            yield Problem("evaluation.labels", "names one twice", "leave it out")
        elif len(evaluation.labels) == 1 and set(labelled) - set(OF_LABELS):
            yield Problem("evaluation.labels", "holds one label, which is always the likeliest", "list all labels")
    if repeated := [metric for metric in evaluation.metrics if evaluation.metrics.count(metric) > 1]:
        yield Problem(METRICS, f"names {repeated[0]} twice", "leave it out")
    generated = [metric for metric in evaluation.metrics if metric != "perplexity"]
    if generated and config.data.text and not reads_prompts:
        yield Problem(METRICS, f"{generated[0]} needs answers, and data.text has none", "use perplexity")
    yield from scorer_problems(evaluation, machine)
    yield from _foreign_problems(evaluation, machine)


def _foreign_problems(evaluation: EvaluationConfig, machine: Machine) -> Iterator[Problem]:
    """Yields metrics whose code is not there, or may not be run."""
    for metric in evaluation.metrics:
        module = MODULES.get(EVALUATE if metric.startswith(EVALUATE) else metric)
        if module is not None and not machine.is_described and importlib.util.find_spec(module) is None:
            yield Problem(METRICS, f"{metric} needs {module}, not installed here", "pip install 'scaleup[train]'")
        if is_function(metric):
            file, _, name = metric.rpartition(":")
            yield from definition_problems(Path(file), name, METRICS)
        elif metric.startswith(EVALUATE):
            place, _ = library_metric(metric)
            if not _is_here(place) and (place.startswith((".", "/", "~")) or place.endswith(".py")):
                yield Problem(METRICS, f"there is no metric at {place}", "name its folder or file, or one of the hub")
            elif not _is_here(place) and not evaluation.trust_remote_code:
                what = f"{metric} is code of a hub, and would run here"
                remedy = "name a local folder or file, or say evaluation.trust_remote_code: true"
                yield Problem(METRICS, what, remedy)


def _is_here(place: str) -> bool:
    """Returns whether the library takes a name for a file, or for a folder with a file of the same name."""
    path = Path(place)
    return path.is_file() or (path / f"{path.name}.py").is_file()
