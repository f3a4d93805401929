"""What a pruning run cannot do, by name, before any weight is loaded."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Sequence

from scaleup.config.prune import PruneSettings
from scaleup.config.schema import RowFormat, RunConfig
from scaleup.config.stages import PruneConfig
from scaleup.errors import Problem
from scaleup.plan.facts import ModelFacts, Parts
from scaleup.plan.machine import Machine
from scaleup.plan.model_path import adapter_folder
from scaleup.records.check import DataCheck


def prune_problems(config: RunConfig, machine: Machine) -> Iterator[Problem]:
    if not isinstance(config, PruneConfig):
        return
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
    if is_sparsegpt and importlib.util.find_spec("modelopt") is None:
        yield Problem(
            "prune.sparsity_score",
            "sparsegpt needs nvidia-modelopt",
            "pip install -c constraints.txt 'scaleup[sparsegpt]'",
        )


def calibration_problems(config: RunConfig, data: DataCheck) -> Iterator[Problem]:
    """Of rows that were counted."""
    if not isinstance(config, PruneConfig) or not config.prune.needs_calibration:
        return
    counts = [summary.rows for summary in data.sources.get("train", [])]
    known = [count for count in counts if count is not None]
    if counts and len(known) == len(counts) and sum(known) < config.prune.calibration_rows:
        what = f"{config.prune.calibration_rows} are more than the {sum(known)} of data.train"
        yield Problem("prune.calibration_rows", what, f"use at most {sum(known)}, or name more rows")


def size_problems(config: RunConfig, facts: ModelFacts) -> list[Problem]:
    """What only the model's own sizes can tell."""
    if not isinstance(config, PruneConfig) or facts.parts is None:
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


def row_kind_problems(config: RunConfig, facts: ModelFacts, forms: Sequence[RowFormat]) -> Iterator[Problem]:
    """Rows of another kind than the model reads, and a classifier without classes; `forms` are those of all rows."""
    if not isinstance(config, PruneConfig):
        return
    if facts.task != "sequence_classification":
        if any(form.label is not None for form in forms):
            what = f"({facts.architecture}) is no classifier, and the rows are texts with a class"
            yield Problem("model.path", what, "name a classifier, or leave data.label out")
        return
    if len(facts.labels) < 2:
        what = f"({facts.architecture}) has {'one score' if facts.labels else 'no head'} and no classes"
        yield Problem("model.path", what, "name a classifier of two labels or more, or a language model")
    if any(form.label is None for form in forms):
        what = "says nothing of a text's class, and model is a classifier"
        yield Problem("data", what, "give data.text and data.label")
    if config.data.packing:
        yield Problem("data.packing", "is of language models: each text has a class of its own", "leave it out")


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
