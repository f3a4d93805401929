"""This module plans pruning: what cannot be cut is refused, by name, before any weight is loaded; and the training of
what was cut is planned, which is a distillation with the stage's own data."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from scaleup.config.data import RowFormat
from scaleup.config.run import RunConfig
from scaleup.config.stages.prune import PruneConfig, PruneSettings
from scaleup.errors import Problem
from scaleup.plan.extras import missing_modules, remedy
from scaleup.plan.facts import ModelFacts, ModelRequest, Parts
from scaleup.plan.machine import Machine
from scaleup.plan.model_path import adapter_folder
from scaleup.plan.rules import no_class_named, packing_unsupported
from scaleup.plan.stages import planner_of
from scaleup.plan.stages.base import Facts, Rows, StagePlanner
from scaleup.plan.stages.distill import TEACHER, hidden_problems
from scaleup.plan.stages.distill_modes import top_k_problems
from scaleup.plan.types import BatchPlan
from scaleup.records.check import DataCheck

OWN_KEYS = ("train", "distill", "gradient_checkpointing")
"""Lists the sections of a distillation that a pruning run has within `recovery`."""


class PrunePlanner(StagePlanner[PruneConfig]):
    shows = "prune"
    takes_classifiers = True

    def splits(self, config: PruneConfig) -> dict[str, Rows]:
        learns = config.prune.needs_calibration or config.recovery is not None
        held_out = config.recovery is not None and bool(config.data.validation)
        reads = {"train": learns, "validation": held_out, "test": bool(config.data.test)}
        return {split: "completions" for split, is_read in reads.items() if is_read}

    def problems(self, config: PruneConfig, machine: Machine) -> Iterator[Problem]:
        yield from super().problems(config, machine)
        yield from prune_problems(config)

    def data_problems(self, config: PruneConfig, machine: Machine, data: DataCheck) -> Iterator[Problem]:
        yield from calibration_problems(config, data)
        learner = self.trains_as(config)
        problems = [] if learner is config else planner_of(learner).config_problems(learner, machine)
        yield from recovery_problems(config, problems)

    def trains_as(self, config: PruneConfig) -> RunConfig:
        return config if config.recovery is None else config.as_distillation()

    def learner_key(self, key: str) -> str:
        return f"recovery.{key}" if key.split(".")[0] in OWN_KEYS else key

    def batch(self, config: PruneConfig, data: DataCheck) -> BatchPlan | None:
        learner = self.trains_as(config)
        return None if learner is config else planner_of(learner).batch(learner, data)

    def models(self, config: PruneConfig) -> dict[str, ModelRequest]:
        models = super().models(config)
        return models | {"model": models["model"].model_copy(update={"prune": config.prune})}

    def length_problems(self, config: PruneConfig, facts: ModelFacts, where: str) -> Iterator[Problem]:
        if self.splits(config):
            yield from super().length_problems(config, facts, where)

    def task_problems(
        self, config: PruneConfig, facts: ModelFacts, where: str, forms: list[RowFormat]
    ) -> Iterator[Problem]:
        yield from row_kind_problems(config, facts, forms)

    def model_problems(self, config: PruneConfig, facts: Facts) -> Iterator[Problem]:
        yield from size_problems(config, facts["model"])
        if config.recovery is not None:
            learner = config.as_distillation()
            problems = [*hidden_problems(learner, facts["model"], facts["model"])]  # in all else it is its own equal
            problems += top_k_problems(learner, facts["model"], facts["model"])
            yield from within_recovery(problems)
            if (problem := facts["model"].problem) not in (None, "single_label"):
                what = f"teaches the probabilities of classes, and the model is of {problem}"
                yield Problem("recovery", what, "leave it out, and train the result further: stage: classify")

    def complete(self, config: PruneConfig, facts: Facts) -> Facts:
        """Makes the uncut model the teacher of what is cut."""
        return facts if config.recovery is None else {**facts, TEACHER: facts["model"]}


def prune_problems(config: PruneConfig) -> Iterator[Problem]:
    """Yields cuts that contradict one another, or are not possible for this model."""
    settings, parallel = config.prune, config.parallel
    if settings.is_empty:
        yield Problem(
            "prune", "names nothing to cut", "give layers, intermediate_size, num_key_value_heads or sparsity"
        )
    if adapter_folder(config.model.path) is not None:
        what = f"{config.model.path} is an adapter, and what is cut is a whole model"
        yield Problem("model.path", what, "export it first: scaleup export")
    if config.recovery is None and parallel.strategy not in ("auto", "single", "ddp"):
        what = f"{parallel.strategy} holds a part of the model on each rank, and pruning needs all of it"
        yield Problem("parallel.strategy", what, "use ddp, or single")
    if config.mixed_precision != "no":
        yield Problem("mixed_precision", "pruning measures and checks in float32", "leave it out")
    if isinstance(settings.layers, list) and len(set(settings.layers)) < len(settings.layers):
        twice = next(number for number in settings.layers if settings.layers.count(number) > 1)
        yield Problem("prune.layers", f"names layer {twice} twice", "name each once")
    yield from _sparsity_problems(settings, parallel.num_processes)


def _sparsity_problems(settings: PruneSettings, num_processes: int) -> Iterator[Problem]:
    is_sparsegpt = settings.sparsity is not None and settings.sparsity_score == "sparsegpt"
    if settings.pattern == "2:4" and settings.sparsity != 0.5:
        has = "nothing" if settings.sparsity is None else f"{settings.sparsity:g}"
        yield Problem("prune.sparsity", f"two zeros in four are a sparsity of 0.5, not {has}", "set it to 0.5")
    if is_sparsegpt and settings.pattern != "2:4":
        yield Problem("prune.pattern", "nvidia-modelopt's SparseGPT makes two zeros in four", 'set it to "2:4"')
    if is_sparsegpt and num_processes > 1:
        yield Problem("parallel.num_processes", "SparseGPT measures in one process", "leave it out, or use wanda")
    if is_sparsegpt and missing_modules("sparsegpt"):
        yield Problem("prune.sparsity_score", "sparsegpt needs nvidia-modelopt", remedy("sparsegpt"))


def calibration_problems(config: PruneConfig, data: DataCheck) -> Iterator[Problem]:
    """Yields fewer rows, of those that were counted, than statistics are taken over."""
    if not config.prune.needs_calibration:
        return
    counts = [summary.rows for summary in data.sources.get("train", [])]
    known = [count for count in counts if count is not None]
    if counts and len(known) == len(counts) and sum(known) < config.prune.calibration_rows:
        what = f"{config.prune.calibration_rows} are more than the {sum(known)} of data.train"
        yield Problem("prune.calibration_rows", what, f"use at most {sum(known)}, or name more rows")


def size_problems(config: PruneConfig, facts: ModelFacts) -> list[Problem]:
    """Returns what only the model's own sizes can tell."""
    if facts.parts is None:
        return []
    problems = list(_size_problems(config.prune, facts.parts))
    if config.prune.sparsity is not None and config.prune.sparsity_score == "sparsegpt":
        if facts.model_type == "gpt2":
            what = "nvidia-modelopt prunes nn.Linear, and GPT-2's matrices are Conv1D"
            problems.append(Problem("prune.sparsity_score", what, "use wanda"))
        elif facts.task == "sequence_classification":
            what = "nvidia-modelopt would make zeros in a classifier's head as well"
            problems.append(Problem("prune.sparsity_score", what, "use wanda"))
    return problems


def row_kind_problems(config: PruneConfig, facts: ModelFacts, forms: Sequence[RowFormat]) -> Iterator[Problem]:
    """Yields rows of another kind than the model reads, and a classifier without classes; `forms` are those of all
    rows."""
    if facts.task != "sequence_classification":
        if any(form.label is not None for form in forms):
            what = f"({facts.architecture}) is no classifier, and the rows are texts with a class"
            yield Problem("model.path", what, "name a classifier, or leave data.label out")
        return
    if not facts.reads_labels:
        what = f"({facts.architecture}) has {'one score' if facts.labels else 'no head'} and no classes"
        yield Problem("model.path", what, "name a classifier of two labels or more, or a language model")
    if any(form.label is None for form in forms):
        yield no_class_named()
    if config.data.packing:
        yield packing_unsupported("classifiers")


def _size_problems(settings: PruneSettings, parts: Parts) -> Iterator[Problem]:
    yield from _layer_problems(settings, parts)
    sizes = ("intermediate_size", "num_key_value_heads", "head_dim")
    for key in sizes:
        wanted, has = getattr(settings, key), getattr(parts, key)
        if wanted is None:
            continue
        if key in parts.fixed:
            yield Problem(f"prune.{key}", f"cannot be changed: {parts.fixed[key]}", "leave it out")
        elif wanted >= has:
            yield Problem(f"prune.{key}", f"{wanted} is not below the model's {has}", f"use at most {has - 1}")
    if parts.refused is not None:
        yield Problem("prune", f"Transformers refuses a model of these sizes: {parts.refused}", "choose others")
    if settings.pattern == "2:4" and (odd := [width for width in parts.widths if width % 4]):
        what = f"2:4 needs rows of four, and some matrices have {odd[0]} inputs"
        yield Problem("prune.pattern", what, "use unstructured, or sizes that are multiples of 4")


def _layer_problems(settings: PruneSettings, parts: Parts) -> Iterator[Problem]:
    depth, wanted = min(parts.depths), settings.layers
    if wanted is None:
        return
    if "layers" in parts.fixed:
        yield Problem("prune.layers", f"cannot be changed: {parts.fixed['layers']}", "leave it out")
    elif isinstance(wanted, int) and wanted >= depth:
        yield Problem("prune.layers", f"{wanted} is not below the model's {depth}", f"use at most {depth - 1}")
    elif isinstance(wanted, list):
        if missing := sorted({number for number in wanted if number >= depth}):
            what = f"there is no layer {missing[0]}: the model has {depth}"
            yield Problem("prune.layers", what, f"use numbers from 0 to {depth - 1}")
        elif len(set(wanted)) >= max(parts.depths):
            yield Problem("prune.layers", f"keeps all {depth} layers", "name fewer")


def within_recovery(problems: Sequence[Problem]) -> Iterator[Problem]:
    """Yields the problems of the distillation that a recovery is, under the keys of the pruning run."""
    for problem in problems:
        yield Problem(PLANNER.learner_key(problem.where), problem.what, problem.remedy)


def recovery_problems(config: PruneConfig, problems: Sequence[Problem]) -> Iterator[Problem]:
    """Yields what is wrong with a recovery: `problems` of the distillation that it is, and what the cuts exclude."""
    if config.recovery is None:
        if config.prune.rounds > 1:
            yield Problem("prune.rounds", "without training in between are one cut", "give recovery, or leave it out")
        return
    yield from within_recovery(problems)
    if config.recovery.distill.mode != "offline":
        what = "what is cut learns from the rows as they are"
        yield Problem("recovery.distill.mode", what, "leave it out, or distill in a run of its own")
    if config.recovery.distill.student_layers is not None:
        what = "the student is what is left after the cut"
        yield Problem("recovery.distill.student_layers", what, "leave it out: prune.layers says it")
    if config.prune.sparsity is not None:
        what = "zeros do not outlive training"
        yield Problem("prune.sparsity", what, "leave recovery out, or make zeros in a run after it")
    if config.prune.rounds > 1 and isinstance(config.prune.layers, list):
        yield Problem("prune.layers", "in several rounds is a count, not a list", "say how many layers to keep")


PLANNER = PrunePlanner()
