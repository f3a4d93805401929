"""This module plans learning from preferences: which settings a loss has, and what its reference takes."""

from __future__ import annotations

from collections.abc import Iterator

from scaleup.config.data import RowFormat
from scaleup.config.stages.dpo import DPOConfig
from scaleup.errors import Problem
from scaleup.plan.batches import packing_problems
from scaleup.plan.compat import TESTED_PRECISIONS, Tested
from scaleup.plan.compute import Rate, Workload, compute_plan
from scaleup.plan.facts import MicroBatch, ModelFacts, RowsRequest
from scaleup.plan.machine import Machine
from scaleup.plan.memory import micro_batch_of
from scaleup.plan.model_path import adapter_folder
from scaleup.plan.rules import packing_unsupported
from scaleup.plan.stages.base import Facts
from scaleup.plan.stages.supervised import (
    SupervisedPlanner,
    memory_beside,
    no_classes,
    only_preferences,
    ranking_problems,
)
from scaleup.plan.types import BatchPlan, ComputePlan, MemoryPlan
from scaleup.records.check import DataCheck
from scaleup.records.format_rules import is_unpaired

USED_BY = {
    "beta": frozenset({"dpo", "ipo", "hinge", "robust", "sppo", "orpo", "simpo", "cpo", "kto"}),
    "label_smoothing": frozenset({"robust", "simpo", "cpo"}),
    "simpo_gamma": frozenset({"simpo"}),
    "cpo_alpha": frozenset({"simpo", "cpo"}),
    "desirable_weight": frozenset({"kto"}),
    "undesirable_weight": frozenset({"kto"}),
    "reference_free": frozenset({"dpo", "ipo", "hinge", "robust", "sppo"}),
}
"""Maps a setting -> the losses that have it."""


class DPOPlanner(SupervisedPlanner[DPOConfig]):
    tested = Tested(
        adapters=frozenset({"full", "lora"}),
        precisions=TESTED_PRECISIONS,
        quantized=frozenset({"single", "ddp", "zero1", "zero2", "zero3"}),
        kind="DPO of ",
    )
    answers_rows = True
    shown = frozenset({"loss", *(f"{what}/{side}" for what in ("rewards", "logps") for side in ("chosen", "rejected"))})
    shown |= {"rewards/accuracies", "rewards/margins", "nll_loss", "kl"}

    def stage_problems(self, config: DPOConfig, machine: Machine) -> Iterator[Problem]:
        yield from no_classes(config)
        yield from setting_problems(config)
        yield from reference_problems(config)
        forms = self.row_formats(config)
        yield from kto_problems(config, forms) if config.dpo.is_unpaired else pair_problems(config, forms)
        if any(form.margin is not None for form in forms):
            yield Problem("data.margin", "is of reward models: no loss of stage dpo has one", "leave it out")
        if config.data.packing:
            yield packing_unsupported("responses that are preferred or not")

    def data_problems(self, config: DPOConfig, machine: Machine, data: DataCheck) -> Iterator[Problem]:
        yield from super().data_problems(config, machine, data)
        if not config.dpo.is_unpaired or data.problems:
            return
        for split, summaries in data.sources.items():
            if sum(2 if summary.rows is None else summary.rows for summary in summaries) < 2:
                what = "has one row, and kto compares each with the response of another"
                yield Problem(f"data.{split}", what, "give more rows")

    def rows(self, config: DPOConfig) -> RowsRequest | None:
        rows = super().rows(config)
        return rows and rows.model_copy(update={"preferences": "unpaired" if config.dpo.is_unpaired else "pairs"})

    def micro_batch(self, config: DPOConfig) -> MicroBatch | None:
        """Counts both responses of a pair."""
        batch = micro_batch_of(config)
        return batch if config.dpo.is_unpaired else batch.model_copy(update={"rows": 2 * batch.rows})

    def task_problems(
        self, config: DPOConfig, facts: ModelFacts, where: str, forms: list[RowFormat]
    ) -> Iterator[Problem]:
        yield from packing_problems(config, facts)
        yield from super().task_problems(config, facts, where, forms)

    def trained(self, config: DPOConfig, facts: Facts) -> ModelFacts:
        return with_reference(config, facts["model"])

    def memory(self, config: DPOConfig, facts: Facts, strategy: str) -> MemoryPlan:
        """Returns the bytes that a rank holds, a copy's weights as `reference`."""
        return memory_beside(config, facts["model"], with_reference(config, facts["model"]), strategy)

    def compute(self, config: DPOConfig, facts: Facts, batch: BatchPlan, rate: Rate) -> ComputePlan | None:
        reference = facts["model"] if config.dpo.needs_reference else None
        texts = {"texts_read": 1} if config.dpo.is_unpaired else {"texts_a_row": 2}
        work = Workload(teacher=reference, is_cached=config.dpo.caches_reference, **texts)
        return compute_plan(config, facts["model"], batch, rate, work)


def trains_adapter(config: DPOConfig) -> bool:
    """Returns whether what is trained can be switched off: an adapter of PEFT."""
    if config.adapter is None:
        return adapter_folder(config.model.path) is not None
    return config.adapter.type != "selective"


def with_reference(config: DPOConfig, model: ModelFacts) -> ModelFacts:
    """Returns the facts of what is trained as one module: the model, and its frozen copy if it needs one."""
    if not config.dpo.needs_reference or config.dpo.caches_reference or trains_adapter(config):
        return model
    frozen = tuple(tensors.model_copy(update={"trainable": False}) for tensors in model.tensors)
    sizes = {"tensors": (*model.tensors, *frozen), "num_parameters": 2 * model.num_parameters}
    return model.model_copy(update=sizes)


def pair_problems(config: DPOConfig, forms: list[RowFormat]) -> Iterator[Problem]:
    """Yields rows that are no pairs."""
    if any(map(is_unpaired, forms)):
        what = f"says whether a completion is desirable, and loss {', '.join(config.dpo.losses)} compares two"
        yield Problem("data.label", what, "use dpo.loss: kto, or give data.chosen and data.rejected")
    yield from only_preferences(config, [form for form in forms if not is_unpaired(form)])
    yield from ranking_problems(config, forms)


def kto_problems(config: DPOConfig, forms: list[RowFormat]) -> Iterator[Problem]:
    """Yields rows that are no single responses, and what does not go with the estimate of the KL divergence."""
    if config.dpo.losses != ["kto"]:
        what = "kto is of single responses, and the others of pairs: they cannot be summed"
        yield Problem("dpo.loss", what, "name kto alone, or leave it out")
    remedy = "give data.prompt, data.completion, and with data.label the column that says whether it is desirable"
    for key in ("chosen", "completions", "template", "messages", "text"):
        if any(getattr(form, key) is not None for form in forms):
            yield Problem(f"data.{key}", "is not of single responses that are desirable or not, as kto needs", remedy)
    if any(form.completion is not None and not is_unpaired(form) for form in forms):
        yield Problem("data.completion", "nothing says whether it is desirable, as kto needs", remedy)
    if config.data.streaming:
        what = "kto compares each row with the response of another, and streamed rows are not known beforehand"
        yield Problem("data.streaming", what, "read them from files")


def setting_problems(config: DPOConfig) -> Iterator[Problem]:
    """Yields settings that the chosen loss does not have, and weights that do not fit the losses."""
    dpo = config.dpo
    given, names = dpo.given, ", ".join(dpo.losses)
    for key, losses in USED_BY.items():
        if key in given and losses.isdisjoint(dpo.losses):
            yield Problem(
                f"dpo.{key}",
                f"has no meaning for loss: {names}",
                f"leave it out, or use one of {', '.join(sorted(losses))}",
            )
    if len(set(dpo.losses)) < len(dpo.losses):
        yield Problem("dpo.loss", f"names a loss twice: {names}", "name each once, and give dpo.loss_weights")
    if dpo.loss_weights is not None and len(dpo.loss_weights) != len(dpo.losses):
        what = f"has {len(dpo.loss_weights)} numbers for {len(dpo.losses)} losses ({names})"
        yield Problem("dpo.loss_weights", what, "give each loss one")


def reference_problems(config: DPOConfig) -> Iterator[Problem]:
    """Yields a reference that the losses do not look at, or that the model cannot be."""
    dpo = config.dpo
    if dpo.reference == "auto":
        return
    if not dpo.needs_reference:
        why = "dpo.reference_free is true" if dpo.reference_free else f"loss: {', '.join(dpo.losses)} has none"
        yield Problem("dpo.reference", f"{dpo.reference} is never looked at: {why}", "leave it out")
    elif dpo.reference == "adapter_off" and not trains_adapter(config):
        what = "adapter_off needs an adapter that can be switched off, and the model's own weights are trained"
        yield Problem("dpo.reference", what, "use copy, or train an adapter: {type: lora}")
    elif dpo.caches_reference and config.data.streaming and not dpo.is_unpaired:
        what = "the reference reads all rows before training (dpo.reference: cached)"
        yield Problem("data.streaming", what, "read them from files, or use another dpo.reference")
    elif dpo.reference == "copy" and trains_adapter(config):
        what = "copy is not supported with an adapter: without it, the model is its own reference"
        yield Problem("dpo.reference", what, "use adapter_off, which needs no second model")


PLANNER = DPOPlanner()
