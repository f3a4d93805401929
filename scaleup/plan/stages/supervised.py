"""This module holds the planners shared by the stages that train, and by those that learn from rows as they are."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeVar

from scaleup.config.adapters import AdaLoraAdapter
from scaleup.config.data import RowFormat
from scaleup.config.stages.base import SupervisedConfig, TrainingConfig
from scaleup.errors import Problem
from scaleup.plan.adapters import adapter_problems
from scaleup.plan.batches import batch_plan, batch_size_problems, batching_problems, packing_problems
from scaleup.plan.compat import untested_notes
from scaleup.plan.compute import Rate, Workload, compute_plan
from scaleup.plan.experts import expert_notes, expert_problems
from scaleup.plan.facts import MicroBatch, ModelFacts, ModelRequest
from scaleup.plan.machine import Machine
from scaleup.plan.memory import gathered_bytes, micro_batch_of, predicted_memory
from scaleup.plan.metrics import logged_figures, training_metric_problems
from scaleup.plan.rules import optimizer_problems
from scaleup.plan.stages.base import Facts, Rows, StagePlanner
from scaleup.plan.types import BatchPlan, ComputePlan, MemoryPlan
from scaleup.records.check import DataCheck
from scaleup.records.examples import row_format
from scaleup.records.format_rules import PREFERENCE_KEYS, holds_class, holds_preferences, is_unpaired, told_by_columns
from scaleup.records.preferences import reasons

READ = ("train", "validation", "retain", "regularization")
"""Names the lists of rows that a supervised stage may read."""

T = TypeVar("T", bound=TrainingConfig)
S = TypeVar("S", bound=SupervisedConfig)


class TrainingPlanner(StagePlanner[T]):
    """Answers for a stage that trains a model, whole or through an adapter."""

    trains = True
    keeps_shapes = True

    def problems(self, config: T, machine: Machine) -> Iterator[Problem]:
        yield from optimizer_problems(config)
        yield from adapter_problems(config)
        yield from super().problems(config, machine)

    def steps(self, config: T) -> tuple[int | None, str]:
        """Returns how many optimizer steps the config itself asks for, and what it calls them."""
        return getattr(config.train, "max_steps", None), "max_steps"

    def untested_notes(self, config: T, strategy: str) -> list[str]:
        return untested_notes(config, strategy, self.tested)

    def twin(self, config: T) -> dict[str, Any] | None:
        return {}

    def optimization_problems(self, config: T) -> Iterator[Problem]:
        """Yields a schedule or an optimizer that the config contradicts."""
        train = config.train
        steps, named = self.steps(config)
        if train.warmup_steps is not None and train.warmup_ratio is not None:
            yield Problem("train.warmup_steps", "and train.warmup_ratio exclude each other", "give one")
        if train.warmup_steps is not None and steps is not None and train.warmup_steps > steps:
            yield Problem("train.warmup_steps", f"is longer than {named} {steps}", "use fewer")
        if train.momentum and train.optimizer != "sgd":
            yield Problem(
                "train.momentum", f"has no meaning for {train.optimizer}", "use optimizer sgd, or leave it out"
            )

    def models(self, config: T) -> dict[str, ModelRequest]:
        models = super().models(config)
        return models | {"model": models["model"].model_copy(update={"adapter": config.adapter})}

    def facts_problems(self, config: T, facts: ModelFacts, where: str) -> Iterator[Problem]:
        yield from super().facts_problems(config, facts, where)
        yield from expert_problems(config, facts, where)

    def notes(self, config: T, facts: Facts, batch: BatchPlan | None, data: DataCheck) -> list[str]:
        return [
            *_new_token_notes(facts["model"]),
            *expert_notes(config, facts["model"], self.adds_router_loss),
        ]


def _new_token_notes(facts: ModelFacts) -> Iterator[str]:
    """Yields how many tokens are added, and what becomes of the embeddings."""
    if not (ids := facts.new_token_ids):
        return
    rows = f"the {facts.vocab_size:,} rows of the embeddings have room for them"
    if facts.stored_vocab_size is not None:
        rows = f"the embeddings grow from {facts.stored_vocab_size:,} rows to {facts.vocab_size:,}"
    numbers = f"id {ids[0]}" if len(ids) == 1 else f"ids {ids[0]} to {ids[-1]}"
    yield f"new tokens: {len(ids)} ({numbers}); {rows}"


class SupervisedPlanner(TrainingPlanner[S]):
    """Answers for a stage that learns from rows as they are, by the one loop of `train/fit.py`."""

    answers_rows = False
    """Tells whether what is trained can answer validation rows."""
    shown = frozenset({"loss"})
    """Names the figures of an evaluation, beside those of answers."""
    work = Workload()
    """Says what a row costs beside one forward and backward pass."""

    def splits(self, config: S) -> dict[str, Rows]:
        return (
            {"train": "completions", "validation": "completions"}
            if config.data.validation
            else {"train": "completions"}
        )

    def generates(self, config: S) -> bool:
        return bool(config.train.eval_metrics)

    def tokenized(self, config: S) -> dict[str, Rows]:
        return {} if config.data.streaming else self.splits(config)

    def problems(self, config: S, machine: Machine) -> Iterator[Problem]:
        yield from super().problems(config, machine)
        if isinstance(config.adapter, AdaLoraAdapter) and config.train.max_steps is not None:
            yield from config.adapter.schedule_problems(config.train.max_steps)
        yield from self.stage_problems(config, machine)
        yield from batch_size_problems(config)
        yield from batching_problems(config)
        yield from self.optimization_problems(config)
        yield from _length_problems(config)
        yield from training_metric_problems(config, machine, self.answers_rows, self.shown)
        yield from _streaming_problems(config)

    def stage_problems(self, config: S, machine: Machine) -> Iterator[Problem]:
        """Yields what cannot work in this stage alone."""
        yield from ()

    def logged(self, config: S) -> frozenset[str]:
        is_evaluated = config.data.validation or config.data.validation_fraction is not None
        return frozenset({"loss"}) | (
            logged_figures(config.train, self.shown, "eval_") if is_evaluated else frozenset()
        )

    def batch(self, config: S, data: DataCheck) -> BatchPlan | None:
        return batch_plan(config, data)

    def batch_problems(self, config: S, batch: BatchPlan) -> Iterator[Problem]:
        # with max_steps the config itself has told
        if isinstance(config.adapter, AdaLoraAdapter) and config.train.max_steps is None:
            yield from config.adapter.schedule_problems(batch.num_steps)

    def micro_batch(self, config: S) -> MicroBatch | None:
        return micro_batch_of(config)

    def task_problems(self, config: S, facts: ModelFacts, where: str, forms: list[RowFormat]) -> Iterator[Problem]:
        yield from packing_problems(config, facts)
        yield from super().task_problems(config, facts, where, forms)

    def memory(self, config: S, facts: Facts, strategy: str) -> MemoryPlan:
        return predicted_memory(facts["model"], config, strategy, config.parallel.num_processes)

    def compute(self, config: S, facts: Facts, batch: BatchPlan, rate: Rate) -> ComputePlan | None:
        return compute_plan(config, facts["model"], batch, rate, self.work)

    def notes(self, config: S, facts: Facts, batch: BatchPlan | None, data: DataCheck) -> list[str]:
        assert batch is not None
        notes = [*_mixture_notes(config, batch, data), *_left_out_notes(data)]
        return [*notes, *self.memory_notes(config, facts["model"]), *super().notes(config, facts, batch, data)]

    def memory_notes(self, config: S, facts: ModelFacts) -> list[str]:
        """Returns what the memory table does not hold."""
        if facts.untraced is None:
            return []
        why = f"{facts.architecture} cannot be traced ({facts.untraced})"
        return [f"activations are not in the memory table: {why}"]


def memory_beside(config: SupervisedConfig, model: ModelFacts, both: ModelFacts, strategy: str) -> MemoryPlan:
    """Returns the bytes that a rank holds of a model in training beside a frozen copy, if `both` has one: its weights
    as `reference`, and those that are gathered while the model answers rows."""
    count = config.parallel.num_processes
    whole, alone = (predicted_memory(facts, config, strategy, count) for facts in (both, model))
    held = whole.model_copy(update={"weights": alone.weights, "reference": whole.weights - alone.weights})
    if not config.train.eval_metrics:
        return held
    return held.model_copy(update={"gathered": gathered_bytes(model, config, held)})


def _length_problems(config: SupervisedConfig) -> Iterator[Problem]:
    """Yields conflicts of a run's length with what it evaluates and saves on the way."""
    train, data = config.train, config.data
    if (train.max_steps is None) == (train.num_train_epochs is None):
        what = "is needed" if train.max_steps is None else "and train.num_train_epochs exclude each other"
        yield Problem("train.max_steps", what, "give max_steps or num_train_epochs")
    has_validation = bool(data.validation) or data.validation_fraction is not None
    is_measured = has_validation or data.retain is not None
    for key in ("eval_steps", "early_stopping_patience", "load_best_model_at_end"):
        if getattr(train, key) and not (is_measured if key == "eval_steps" else has_validation):
            yield Problem(f"train.{key}", "needs validation rows", "give data.validation or data.validation_fraction")
    for key in ("early_stopping_patience", "load_best_model_at_end"):
        if getattr(train, key) and has_validation and train.eval_steps is None:
            yield Problem(f"train.{key}", "needs evaluation during training", "give train.eval_steps")


def _streaming_problems(config: SupervisedConfig) -> Iterator[Problem]:
    if not config.data.streaming:
        return
    if config.data.validation_fraction is not None:
        yield Problem("data.validation_fraction", "cannot be drawn from streamed rows", "give data.validation")
    if config.train.max_steps is None and config.train.num_train_epochs is not None:
        yield Problem("train.num_train_epochs", "streamed rows are not counted beforehand", "give train.max_steps")


def _mixture_notes(config: SupervisedConfig, batch: BatchPlan, data: DataCheck) -> list[str]:
    sources = config.data.train or []
    summaries = data.sources.get("train", [])
    if len(sources) < 2 or batch.num_steps is None:
        return []
    total = sum(source.weight for source in sources)
    drawn = batch.num_steps * batch.global_batch
    notes = []
    for source, summary in zip(sources, summaries, strict=True):
        share = source.weight / total
        counted = summary.rows if batch.unit == "rows" else None
        passes = f", {drawn * share / counted:.2f} passes over it" if counted else ""
        notes.append(f"{source.path}: {share:.0%} of the rows drawn{passes}")
    return notes


def _left_out_notes(data: DataCheck) -> list[str]:
    left_out = [(summary.path, list(reasons(summary.left_out))) for each in data.sources.values() for summary in each]
    return [f"{path}: pairs left out: {', '.join(why)}" for path, why in left_out if why]


def no_preferences(config: SupervisedConfig) -> Iterator[Problem]:
    """Yields pairs, rankings and judged responses, which a language model does not learn from here."""
    sources = [source for split in READ for source in getattr(config.data, split) or []]
    forms = [row_format(config.data, source) for source in sources]
    if any(map(holds_preferences, forms)):
        key = next(key for key in PREFERENCE_KEYS if any(getattr(form, key) is not None for form in forms))
        what = f"is of preferences, which stage {config.stage} does not learn from{_told(config)}"
        yield Problem(f"data.{key}", what, "use stage: dpo, or stage: reward")
    if any(map(is_unpaired, forms)):
        what = f"says whether a completion is desirable, which stage {config.stage} does not learn from"
        yield Problem("data.label", what, "use stage: dpo with dpo.loss: kto, or leave it out")


def only_preferences(config: SupervisedConfig, forms: list[RowFormat]) -> Iterator[Problem]:
    """Yields rows that hold no preferences, for a stage that learns from nothing else. `forms` are those of all
    rows."""
    for key in ("completion", "template", "messages", "text"):
        if any(getattr(form, key) is not None for form in forms):
            what = f"says nothing of which response is preferred{_told(config)}"
            yield Problem(f"data.{key}", what, "give data.chosen and data.rejected, or data.completions with ranks")


def ranking_problems(config: SupervisedConfig, forms: list[RowFormat]) -> Iterator[Problem]:
    """Yields what does not go with rankings, of each of which several pairs are made."""
    if all(form.completions is None for form in forms):
        return
    reasons = {
        "streaming": "streamed rows make one pair each",
        "validation_fraction": "pairs of one row would be parted",
    }
    for name, why in reasons.items():
        if getattr(config.data, name):
            yield Problem(f"data.{name}", f"does not go with rankings: {why}", "write pairs, or leave it out")


def _told(config: SupervisedConfig) -> str:
    return told_by_columns(config.data, READ)


def no_classes(config: SupervisedConfig) -> Iterator[Problem]:
    """Yields texts with a class."""
    sources = [source for split in READ for source in getattr(config.data, split) or []]
    forms = [row_format(config.data, source) for source in sources]
    if any(holds_class(form) and not holds_preferences(form) for form in forms):
        what = f"is of classifiers, which stage {config.stage} does not train{_told(config)}"
        remedy = "use stage: classify, or distill with a classifier as the teacher"
        if _told(config):
            remedy = f"set data.prompt and data.completion, or data.text; or {remedy}"
        yield Problem("data.label", what, remedy)
