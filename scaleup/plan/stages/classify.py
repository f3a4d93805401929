"""This module plans classifiers: what their labels are, and which rows and settings do not go with them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from scaleup.config.data import ClassProblem, RowFormat
from scaleup.config.schema import ModelConfig
from scaleup.config.stages.classify import ClassifyConfig
from scaleup.errors import Problem
from scaleup.plan.batches import packing_problems
from scaleup.plan.compat import Tested
from scaleup.plan.facts import ModelFacts, ModelRequest
from scaleup.plan.machine import Machine
from scaleup.plan.rules import packing_unsupported
from scaleup.plan.stages.base import Facts
from scaleup.plan.stages.supervised import SupervisedPlanner, no_preferences
from scaleup.plan.types import BatchPlan
from scaleup.records.check import DataCheck, class_problems, label_counts
from scaleup.records.labels import Targets, names_of, problem_of

OTHER_FORMATS = ("completion", "template", "messages", "text")
NUM_LABELS_SHOWN = 10


class ClassifyPlanner(SupervisedPlanner[ClassifyConfig]):
    tested = Tested(
        adapters=frozenset({"full", "lora"}),
        precisions=frozenset({"no"}),
        quantized=frozenset({"single", "ddp", "zero2"}),
        also=frozenset(("full", strategy, None, "bf16") for strategy in ("ddp", "zero3", "fsdp2")),
        kind="a classifier of ",
    )
    takes_classifiers = True
    writes_text = False
    shown = frozenset({"loss", "accuracy"})

    def stage_problems(self, config: ClassifyConfig, machine: Machine) -> Iterator[Problem]:
        yield from no_preferences(config)
        bare = [form for form in self.row_formats(config) if form.label is None]
        keys = (key for key in OTHER_FORMATS if any(getattr(form, key) is not None for form in bare))
        if (key := next(keys, None)) is not None:
            yield Problem(f"data.{key}", "says nothing of a text's class", "give data.text and data.label")
        if config.model.task not in ("auto", "sequence_classification"):
            what = f"a classifier is no {config.model.task} model"
            yield Problem("model.task", what, "leave it out: whatever the model is, it gets a head over the labels")
        if config.data.packing:
            yield packing_unsupported("classifiers")
        yield from setting_problems(config)

    def models(self, config: ClassifyConfig) -> dict[str, ModelRequest]:
        models = super().models(config)
        return models | {"model": models["model"].model_copy(update={"task": "sequence_classification"})}

    def data_problems(self, config: ClassifyConfig, machine: Machine, data: DataCheck) -> Iterator[Problem]:
        """Yields what rows say against labels that the config lists, so that it is told of with all else."""
        problem, names = wanted_head(config, data)
        if problem is not None and config.classify.labels is not None:
            yield from class_problems(data, Targets(names, problem))
        elif problem == "multi_label" and not names and label_counts(data, "train"):
            yield Problem("data.label", "no row has any label", "name another column, or list classify.labels")

    def told_by_rows(
        self, config: ClassifyConfig, models: dict[str, ModelRequest], data: DataCheck
    ) -> dict[str, ModelRequest]:
        """Names the labels that a new head gets: those of the config, or else of the training rows."""
        update = dict(zip(("problem", "new_labels"), wanted_head(config, data), strict=True))
        return models | {"model": models["model"].model_copy(update=update)}

    def task_problems(
        self, config: ClassifyConfig, facts: ModelFacts, where: str, forms: list[RowFormat]
    ) -> Iterator[Problem]:
        yield from packing_problems(config, facts)
        if where == "model":
            yield from head_problems(config, facts)

    def label_problems(self, config: ClassifyConfig, facts: Facts, data: DataCheck) -> Iterator[Problem]:
        yield from super().label_problems(config, facts, data)
        if config.classify.class_weights == "balanced" and facts["model"].problem in ("single_label", "multi_label"):
            yield from balance_problems(facts["model"].targets, data)

    def notes(self, config: ClassifyConfig, facts: Facts, batch: BatchPlan | None, data: DataCheck) -> list[str]:
        problem, names = facts["model"].problem, facts["model"].classes
        more = f" and {len(names) - NUM_LABELS_SHOWN} more" if len(names) > NUM_LABELS_SHOWN else ""
        shown = f"{', '.join(names[:NUM_LABELS_SHOWN])}{more}"
        whose = "the model's own" if facts["model"].labels or facts["model"].adapter else "of a new head"
        return [f"classify: {problem}, labels {whose}: {shown}", *super().notes(config, facts, batch, data)]

    def before(self, config: ClassifyConfig) -> ModelConfig | None:
        return None  # the model that it came from has no such head


def wanted_head(config: ClassifyConfig, data: DataCheck) -> tuple[ClassProblem | None, tuple[str, ...]]:
    """Returns the problem and the labels of a new head; none where neither config nor rows tell of them."""
    classify = config.classify
    labels = [label for label, _ in label_counts(data, "train") or ()]
    problem = problem_of(labels) if classify.problem == "auto" else classify.problem
    if classify.labels is not None or problem is None:
        return problem, tuple(classify.labels or ())
    return problem, names_of(labels, problem)


def setting_problems(config: ClassifyConfig) -> Iterator[Problem]:
    """Yields settings that contradict one another, as far as the config itself tells."""
    classify = config.classify
    if classify.labels is not None and len(set(classify.labels)) < len(classify.labels):
        yield Problem("classify.labels", "names a label twice", "name each once")
    if classify.labels is not None and classify.problem == "single_label" and len(classify.labels) < 2:
        yield Problem("classify.labels", "is one label, which says nothing of a text", "name two or more")
    weights = classify.class_weights
    if classify.labels is not None and isinstance(weights, list) and len(weights) != len(classify.labels):
        yield _other_count(weights, classify.labels)
    if weights == "balanced" and config.data.streaming:
        what = "balanced counts the labels of all rows, and data.streaming is true"
        yield Problem("classify.class_weights", what, "give a list, or leave data.streaming out")
    if weights is not None and classify.problem == "regression":
        yield Problem("classify.class_weights", "has no meaning for regression, which has no classes", "leave it out")


def head_problems(config: ClassifyConfig, facts: ModelFacts) -> Iterator[Problem]:
    """Yields what the model's head, its own or a new one, says against the settings."""
    classify, names, problem = config.classify, facts.classes, facts.problem
    if problem is None or not names:
        what = "is needed: the model has no head, and not all rows are read before training"
        if classify.problem == "auto":
            yield Problem("classify.problem", what, "use single_label, multi_label or regression")
        if classify.labels is None:
            yield Problem("classify.labels", what, "list them")
        return
    if classify.problem not in ("auto", problem):
        what = f"is {classify.problem}, and the head of {config.model.path} is of {problem}"
        yield Problem("classify.problem", what, "leave it out, or name the model that its base is")
    elif problem == "single_label" and len(names) < 2:
        what = f"all rows have the label {names[0]!r}, and a class says nothing of a text where there is one"
        yield Problem("data.label", what, "name another column, or list classify.labels")
    if classify.labels is not None and tuple(classify.labels) != names:
        what = f"are not those that {config.model.path} has a head for: {', '.join(names)}"
        yield Problem("classify.labels", what, "leave it out, or name the model that its base is")
    weights = classify.class_weights
    if weights is not None and problem == "regression" and classify.problem != problem:
        yield Problem("classify.class_weights", "has no meaning for regression, which has no classes", "leave it out")
    elif isinstance(weights, list) and problem != "regression" and len(weights) != len(names):
        yield _other_count(weights, names)


def _other_count(weights: Sequence[float], names: Sequence[str]) -> Problem:
    what = f"has {len(weights)} numbers for {len(names)} labels ({', '.join(names)})"
    return Problem("classify.class_weights", what, "give each label one, in this order")


def balance_problems(targets: Targets, data: DataCheck) -> Iterator[Problem]:
    """Yields labels that no training row has, or of several all have: there is nothing to balance them with."""
    found = [(targets.of(label), count) for label, count in label_counts(data, "train") or ()]
    if not found or any(target is None for target, _ in found):
        return
    total = sum(count for _, count in found)
    for number, name in enumerate(targets.names):
        held = sum(count for target, count in found if target == number or _has(target, number))
        if held == 0 or (targets.problem == "multi_label" and held == total):
            what = f"balanced needs rows with and without the label {name!r}: {held} of {total} have it"
            yield Problem("classify.class_weights", what, "give a list, or rows with the label and without it")


def _has(target: object, number: int) -> bool:
    return isinstance(target, tuple) and target[number] > 0


PLANNER = ClassifyPlanner()
