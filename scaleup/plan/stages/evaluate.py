"""This module plans evaluations: it tells what cannot be measured, and beside what."""

from __future__ import annotations

from collections.abc import Iterator

from scaleup.config.data import RowFormat
from scaleup.config.schema import GenerationConfig, ModelConfig
from scaleup.config.stages.evaluate import EvaluateConfig
from scaleup.errors import Problem
from scaleup.plan.benchmarks import KEY as BENCHMARKS
from scaleup.plan.facts import InContext, ModelFacts, ModelRequest, RowsRequest
from scaleup.plan.machine import Machine
from scaleup.plan.rules import one_answer, quantized_twice
from scaleup.plan.saved_adapters import side_by_side_problems, taken_problems
from scaleup.plan.scorers import JUDGE_MODEL, judge_model_problems, judge_problems
from scaleup.plan.stages.base import Facts, Rows, StagePlanner, example_splits, with_examples
from scaleup.plan.types import BatchPlan
from scaleup.records.check import DataCheck
from scaleup.records.examples import row_format
from scaleup.records.format_rules import holds_labels, holds_preferences, is_unpaired

REFERENCE = "evaluation.reference"
"""Is the config key, and what the facts of that model go by."""


class EvaluatePlanner(StagePlanner[EvaluateConfig]):
    makes_model = False
    shows = "evaluate"
    takes_classifiers = True
    takes_few_shot = True

    def splits(self, config: EvaluateConfig) -> dict[str, Rows]:
        if not config.evaluation.metrics:
            return {}
        asked: dict[str, Rows] = {
            config.evaluation.split: "completions" if config.evaluation.needs_completions else "prompts"
        }
        return asked | example_splits(config)

    def rows(self, config: EvaluateConfig) -> RowsRequest | None:
        measured = config.evaluation
        asked = InContext(
            split=measured.split,
            max_samples=measured.max_samples,
            has_completions=measured.needs_completions,
            max_new_tokens=0 if set(measured.metrics) == {"perplexity"} else config.generation.max_new_tokens,
        )
        return with_examples(super().rows(config), asked)

    def readers(self, config: EvaluateConfig) -> dict[str, RowsRequest]:
        readers = super().readers(config)
        if not readers:
            return readers
        readers = readers | dict.fromkeys(_named(config), readers["model"])
        if config.baseline is None:
            return readers
        is_own = config.baseline_chat_template == "own"
        return readers | {"baseline": readers["model"].model_copy(update={"by_own_template": is_own})}

    def model_paths(self, config: EvaluateConfig) -> dict[str, ModelConfig]:
        return super().model_paths(config) | _beside(config)

    def answers(self, config: EvaluateConfig) -> GenerationConfig | None:
        return config.generation

    def problems(self, config: EvaluateConfig, machine: Machine) -> Iterator[Problem]:
        yield from super().problems(config, machine)
        if config.adapters and config.baseline is not None:
            what = "and adapters exclude each other: these are compared with their base"
            yield Problem("baseline", what, "leave it out")
        yield from side_by_side_problems(config.adapters, config.model)
        if config.models:
            yield from taken_problems(config.models, "models")
            for key in (key for key in ("baseline", "adapters") if getattr(config, key) is not None):
                what = "and models exclude each other: these are compared with model"
                yield Problem(key, what, "name it under models, by its own path")
        if "judge" in config.evaluation.metrics:
            yield from _judged_problems(config)
        yield from one_answer(config.generation, "generation", "one answer a prompt is compared")
        if not config.evaluation.metrics and config.data.few_shot is not None:
            yield Problem("data.few_shot", "is of rows, and evaluation.metrics is empty", "use evaluation.num_fewshot")
        if "kl" in config.evaluation.metrics and config.evaluation.reference is None and config.baseline is None:
            yield Problem(REFERENCE, "is needed for kl where there is no baseline", "name a model")

    def quantized_problems(self, config: EvaluateConfig) -> Iterator[Problem]:
        yield from quantized_twice(config.model, config.quantization)

    def models(self, config: EvaluateConfig) -> dict[str, ModelRequest]:
        beside = {
            key: ModelRequest(**model.model_dump(), quantization=config.quantization)
            for key, model in _beside(config).items()
        }
        return super().models(config) | beside

    def facts_problems(self, config: EvaluateConfig, facts: ModelFacts, where: str) -> Iterator[Problem]:
        if where == JUDGE_MODEL and config.evaluation.judge is not None:
            yield from judge_model_problems(config.evaluation.judge, facts, where)
        else:
            yield from super().facts_problems(config, facts, where)

    def model_problems(self, config: EvaluateConfig, facts: Facts) -> Iterator[Problem]:
        yield from super().model_problems(config, facts)
        if "kl" in config.evaluation.metrics:
            key = REFERENCE if config.evaluation.reference else "baseline"
            for where in ("model", *_named(config)):
                if facts[key].vocabulary != facts[where].vocabulary:
                    what = f"has other tokens than {key}, and kl compares probabilities of the same ones"
                    yield Problem(where, what, f"name another model at {REFERENCE}, or leave kl out")

    def task_problems(
        self, config: EvaluateConfig, facts: ModelFacts, where: str, forms: list[RowFormat]
    ) -> Iterator[Problem]:
        yield from kind_problems(config, facts, where)

    def notes(self, config: EvaluateConfig, facts: Facts, batch: BatchPlan | None, data: DataCheck) -> list[str]:
        if not config.evaluation.metrics:
            return []
        others = [key for key in ("baseline", *_named(config)) if key in facts]
        strange = [key for key in others if facts[key].vocabulary != facts["model"].vocabulary]
        return [
            f"{key} and model have other tokens: a loss, and a perplexity, is that of a token of each"
            for key in strange
        ]

    def before(self, config: EvaluateConfig) -> ModelConfig | None:
        return None


def _beside(config: EvaluateConfig) -> dict[str, ModelConfig]:
    """Returns the models that others are compared with, by config key."""
    models = {"baseline": config.baseline, **_named(config)}
    if "kl" in config.evaluation.metrics:
        models[REFERENCE] = config.evaluation.reference
    if "judge" in config.evaluation.metrics and config.evaluation.judge is not None:
        models[JUDGE_MODEL] = config.evaluation.judge.model
    return {key: model for key, model in models.items() if model is not None}


def _judged_problems(config: EvaluateConfig) -> Iterator[Problem]:
    if config.baseline is None and not config.models and not config.adapters:
        what = "judge compares answers with the first column's, and there is one column"
        yield Problem("evaluation.metrics", what, "name a baseline, models or adapters, or leave judge out")
    if config.evaluation.judge is not None:
        yield from judge_problems(config.evaluation.judge, "evaluation.judge")


def _named(config: EvaluateConfig) -> dict[str, ModelConfig]:
    """Returns the models that have a column of their own name, by config key."""
    return {f"models.{name}": model for name, model in (config.models or {}).items()}


def kind_problems(config: EvaluateConfig, facts: ModelFacts, where: str) -> Iterator[Problem]:
    """Yields rows of another kind than the model reads: texts, pairs of responses, or texts with a class."""
    if config.evaluation.tasks and facts.task == "sequence_classification":
        what = f"are for language models, and {where} is a classifier ({facts.architecture})"
        yield Problem(BENCHMARKS, what, "leave them out, or name a language model")
        return
    if not config.evaluation.metrics:
        return
    forms = [row_format(config.data, source) for source in getattr(config.data, config.evaluation.split) or []]
    are_pairs = any(map(holds_preferences, forms))
    are_classes = holds_labels(config.data, config.evaluation.split)
    if any(map(is_unpaired, forms)):
        what = "says whether a completion is desirable, which no metric looks at"
        yield Problem("data.label", what, "measure all of them with data.label=null")
    are_scored = config.evaluation.needs_completions
    if facts.task != "sequence_classification":
        if are_classes:
            what = f"({facts.architecture}) is no classifier, and the rows are texts with a class"
            yield Problem(f"{where}.path", what, "name a classifier, or rows with a prompt and a completion")
        if are_pairs and are_scored:
            yield from likelihood_problems(config, forms)
        return
    if are_classes and not facts.reads_labels:
        yield Problem("data.label", f"{where} has one score and no classes", "give data.chosen and data.rejected")
    elif not are_pairs and not are_classes:
        what = f"{where} is a reward model, which is measured on preferences"
        yield Problem("data", what, "give data.chosen and data.rejected, or data.text and data.label for a classifier")
    if config.adapters:
        yield Problem("adapters", "of classifiers are not put side by side", "evaluate each by its own path")
    if config.evaluation.metrics != ["perplexity"]:
        what = f"{where} is a classifier, whose metrics follow from the rows: accuracy and the like"
        yield Problem("evaluation.metrics", what, "leave it out")
    if (are_pairs and len(facts.classes) > 1) or not (facts.labels or facts.adapter):
        head = f"{len(facts.classes)} labels" if facts.classes else "no head"
        yield Problem(f"{where}.path", f"has {head}, and one score is compared", "name a reward run")


def likelihood_problems(config: EvaluateConfig, forms: list[RowFormat]) -> Iterator[Problem]:
    """Yields what cannot be measured of a language model on pairs: how likely both responses are."""
    if not all(map(holds_preferences, forms)):
        what = "holds pairs beside other rows, and what is measured of them differs"
        yield Problem(f"data.{config.evaluation.split}", what, "evaluate them one after another")
    if config.evaluation.metrics != ["perplexity"]:
        what = "are not of pairs, of which it is measured how likely both responses are"
        yield Problem("evaluation.metrics", what, "leave it out, or name rows with a prompt and a completion")
    if config.adapters:
        yield Problem("adapters", "are not put side by side on pairs", "evaluate each by its own path")
    if config.evaluation.tasks:
        what = "are not measured beside pairs"
        yield Problem(BENCHMARKS, what, "leave the rows out, with evaluation.metrics: [], or the tasks")


PLANNER = EvaluatePlanner()
