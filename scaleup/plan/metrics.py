"""This module checks the metrics of an evaluation: what each needs of the config, of rows and of this machine."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Sequence
from pathlib import Path

from scaleup.config.evaluation import EvaluationConfig
from scaleup.config.metrics import EVALUATE, FIGURES, OF_LABELS, is_foreign, is_function, library_metric
from scaleup.config.mistakes import suggestion
from scaleup.config.run import RunConfig
from scaleup.config.schema import EvaluatedConfig
from scaleup.config.stages.base import SupervisedConfig
from scaleup.errors import Problem
from scaleup.plan.benchmarks import benchmark_problems
from scaleup.plan.machine import Machine
from scaleup.plan.reward_functions import definition_problems
from scaleup.plan.rules import one_answer
from scaleup.plan.scorers import scorer_problems

METRICS, ANSWERED = "evaluation.metrics", "train.eval_metrics"
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
    if not evaluation.metrics and not evaluation.tasks:
        yield Problem(METRICS, "is empty, and so is evaluation.tasks: nothing would be measured", "name one")
    yield from benchmark_problems(evaluation, machine)
    yield from scorer_problems(evaluation, machine)
    yield from _foreign_problems(evaluation.metrics, METRICS, evaluation.trust_remote_code, machine)


def training_metric_problems(
    config: SupervisedConfig, machine: Machine, answers: bool, shown: frozenset[str]
) -> Iterator[Problem]:
    """Yields metrics by which a model in training cannot be measured. `answers`: what the stage trains writes text;
    `shown` are the figures of an evaluation beside those of `train.eval_metrics`."""
    if config.train.eval_metrics and not answers:
        yield Problem(ANSWERED, f"stage {config.stage} trains nothing that writes answers", "leave it out")
    elif config.train.eval_metrics:
        yield from _answer_problems(config)
    yield from chosen_metric_problems(config.train, config.evaluation, shown, machine)


def chosen_metric_problems(
    train: EvaluatedConfig, evaluation: EvaluationConfig, shown: frozenset[str], machine: Machine
) -> Iterator[Problem]:
    """Yields metrics of answers that nothing computes while a model trains, and a metric to go by that is none of
    them."""
    for metric in (each for each in train.eval_metrics if each not in FIGURES and not is_foreign(each)):
        is_told = metric == "perplexity" and "loss" in shown
        remedy = "it is eval_loss's exponential" if is_told else "measure it with scaleup evaluate"
        yield Problem(ANSWERED, f"{metric} is not supported while a model trains", remedy)
    if {"accuracy", "f1"} & set(train.eval_metrics) and not evaluation.labels:
        yield Problem("evaluation.labels", f"is needed for {ANSWERED}", "list the labels, e.g. [positive, negative]")
    yield from _foreign_problems(train.eval_metrics, ANSWERED, evaluation.trust_remote_code, machine)
    figures = figures_of(train, shown)
    chosen, key = train.metric_for_best_model, "train.metric_for_best_model"
    if chosen not in figures and not any(map(is_foreign, train.eval_metrics)):
        remedy = suggestion(chosen, sorted(figures)) or f"use one of {', '.join(sorted(figures))}"
        yield Problem(key, f"{chosen!r} is no figure of this run's evaluations", remedy)
    goes_by_it = train.load_best_model_at_end or train.early_stopping_patience is not None
    is_named = chosen != type(train).model_fields["metric_for_best_model"].default
    if (is_named or train.greater_is_better is not None) and not goes_by_it:
        remedy = "give train.load_best_model_at_end or train.early_stopping_patience, or leave it out"
        yield Problem(key, "is never looked at", remedy)


def figures_of(train: EvaluatedConfig, shown: frozenset[str]) -> frozenset[str]:
    """Returns the figures of an evaluation while a model trains, as far as their names are known before it; `shown` are
    those beside the figures of `train.eval_metrics`."""
    return shown.union(*(FIGURES.get(metric, ()) for metric in train.eval_metrics))


def logged_figures(train: EvaluatedConfig, shown: frozenset[str], prefix: str) -> frozenset[str]:
    """Returns the metrics that evaluations log, as patterns: those of other people's code may have any name."""
    figures = figures_of(train, shown) | ({"*"} if any(map(is_foreign, train.eval_metrics)) else set())
    return frozenset(prefix + figure for figure in figures)


def _answer_problems(config: SupervisedConfig) -> Iterator[Problem]:
    """Yields why a model in training cannot answer validation rows."""
    if not config.data.validation and config.data.validation_fraction is None:
        yield Problem(ANSWERED, "needs validation rows", "give data.validation or data.validation_fraction")
    if config.data.text:
        yield Problem(ANSWERED, "needs prompts to answer, and data.text has none", "leave it out")
    if not config.data.completion_only_loss:
        what = "cannot tell prompts from answers where all of a row is learned"
        yield Problem(ANSWERED, what, "leave it out, or say data.completion_only_loss: true")
    generation = getattr(config, "generation", None)
    if generation is None:
        return
    yield from one_answer(generation, "generation", f"one answer a row is measured by {ANSWERED}")
    if generation.num_beams > 1 and config.parallel.strategy in ("zero3", "fsdp2", "auto"):
        what = f"is not supported with {ANSWERED} under {config.parallel.strategy}"
        yield Problem("generation.num_beams", what, "use 1, or another strategy")


def _foreign_problems(metrics: Sequence[str], key: str, trust: bool, machine: Machine) -> Iterator[Problem]:
    """Yields metrics, at a config key, whose code is not there, or may not be run."""
    for metric in metrics:
        module = MODULES.get(EVALUATE if metric.startswith(EVALUATE) else metric)
        if module is not None and not machine.is_described and importlib.util.find_spec(module) is None:
            yield Problem(key, f"{metric} needs {module}, not installed here", "pip install 'scaleup[train]'")
        if is_function(metric):
            file, _, name = metric.rpartition(":")
            yield from definition_problems(Path(file), name, key)
        elif metric.startswith(EVALUATE):
            place, _ = library_metric(metric)
            if not _is_here(place) and (place.startswith((".", "/", "~")) or place.endswith(".py")):
                yield Problem(key, f"there is no metric at {place}", "name its folder or file, or one of the hub")
            elif not _is_here(place) and not trust:
                what = f"{metric} is code of a hub, and would run here"
                remedy = "name a local folder or file, or say evaluation.trust_remote_code: true"
                yield Problem(key, what, remedy)


def _is_here(place: str) -> bool:
    """Returns whether the library takes a name for a file, or for a folder with a file of the same name."""
    path = Path(place)
    return path.is_file() or (path / f"{path.name}.py").is_file()
