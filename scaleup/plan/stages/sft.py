"""This module plans supervised fine-tuning, and what it does against forgetting."""

from __future__ import annotations

from collections.abc import Iterator

from scaleup.config.stages.sft import SFTConfig
from scaleup.errors import Problem
from scaleup.plan.arithmetic import LOGITS_CHUNK
from scaleup.plan.compat import ADAPTERS, STRATEGIES, TESTED_PRECISIONS, Tested, untested_notes
from scaleup.plan.compute import Rate, Workload, compute_plan
from scaleup.plan.facts import ModelFacts
from scaleup.plan.kernels import kernel_notes, kernel_problems, liger_family_problems
from scaleup.plan.machine import Machine
from scaleup.plan.memory import FLOAT32, micro_batch_of
from scaleup.plan.stages.base import Facts, Rows
from scaleup.plan.stages.supervised import SupervisedPlanner, memory_beside, no_classes, no_preferences
from scaleup.plan.types import BatchPlan, ComputePlan, MemoryPlan

REGULARIZED = Tested(adapters=frozenset({"full", "lora"}), precisions=frozenset({"no"}), kind="regularization of ")
"""Is what tests train with a term against forgetting."""


class SFTPlanner(SupervisedPlanner[SFTConfig]):
    tested = Tested(
        adapters=frozenset(ADAPTERS),
        precisions=TESTED_PRECISIONS,
        quantized=frozenset(STRATEGIES),
        quantized_precisions=TESTED_PRECISIONS,
    )

    adds_router_loss = True
    answers_rows = True
    has_plain_loss = True

    def splits(self, config: SFTConfig) -> dict[str, Rows]:
        more = [split for split in ("retain", "regularization") if getattr(config.data, split)]
        return super().splits(config) | dict.fromkeys(more, "completions")

    def stage_problems(self, config: SFTConfig, machine: Machine) -> Iterator[Problem]:
        yield from no_preferences(config)
        yield from no_classes(config)
        yield from regularization_problems(config)
        yield from kernel_problems(config, machine)

    def facts_problems(self, config: SFTConfig, facts: ModelFacts, where: str) -> Iterator[Problem]:
        yield from super().facts_problems(config, facts, where)
        if where == "model":
            yield from liger_family_problems(config, facts)
        if config.compares_with_base and where == "model" and facts.experts is not None:
            what = f"kl is not supported with {facts.architecture}, a mixture of experts"
            yield Problem("regularization.type", what, "use ewc or l2sp")

    def trained(self, config: SFTConfig, facts: Facts) -> ModelFacts:
        return with_base(config, facts["model"])

    def memory(self, config: SFTConfig, facts: Facts, strategy: str) -> MemoryPlan:
        """Returns the bytes that a rank holds, a copy's weights as `reference`."""
        return memory_beside(config, facts["model"], with_base(config, facts["model"]), strategy)

    def compute(self, config: SFTConfig, facts: Facts, batch: BatchPlan, rate: Rate) -> ComputePlan | None:
        """Counts an old row as the second text of a new one, and the copy's reading of it."""
        if not config.compares_with_base:
            return super().compute(config, facts, batch, rate)
        work = Workload(texts_a_row=2, teacher=facts["model"], texts_taught=1)
        return compute_plan(config, facts["model"], batch, rate, work)

    def memory_notes(self, config: SFTConfig, facts: ModelFacts) -> list[str]:
        return [*super().memory_notes(config, facts), *kernel_notes(config)]

    def untested_notes(self, config: SFTConfig, strategy: str) -> list[str]:
        return untested_notes(config, strategy, self.tested if config.regularization is None else REGULARIZED)


def regularization_problems(config: SFTConfig) -> Iterator[Problem]:
    """Yields old rows that are missing or never read, and what a term against forgetting does not go with."""
    term, rows = config.regularization, config.data.regularization
    if term is None:
        if rows is not None:
            what = "is never read: there is no regularization"
            yield Problem("data.regularization", what, "give regularization: {type: ewc, weight: 100}, or leave it out")
        return
    if term.reads_rows and rows is None:
        what = f"is needed by regularization.type: {term.type}"
        yield Problem("data.regularization", what, "name rows of what the model should keep, or use l2sp")
    elif rows is not None and not term.reads_rows:
        what = f"has no meaning for regularization.type: {term.type}, which looks at weights alone"
        yield Problem("data.regularization", what, "leave it out, or use ewc or kl")
    if config.adapter is not None and config.adapter.type == "adalora":
        what = "is not supported with adalora, which takes away the weights that it would hold"
        yield Problem("regularization", what, "use lora, or leave it out")
    if config.compares_with_base:
        yield from base_problems(config)
    if term.type == "ewc" and config.mixed_precision == "fp16":
        what = "ewc squares the gradient of each row, and one that overflows in fp16 would be left out"
        yield Problem("mixed_precision", what, 'use bf16, or "no"')


def base_problems(config: SFTConfig) -> Iterator[Problem]:
    """Yields what does not go with a frozen copy beside the model, and with a micro-batch of old rows for each of new
    ones."""
    if config.quantization is not None:
        what = "kl is not supported with it: no strategy shards a quantized model beside its copy"
        yield Problem("quantization", what, "leave it out, or use regularization.type: ewc or l2sp")
    if config.mixed_precision == "fp16":
        what = "the gradient of kl is made in the forward pass, before fp16's loss scale is known"
        yield Problem("mixed_precision", what, 'use bf16, or "no"')
    by_tokens = {"data.packing": config.data.packing, "train.tokens_per_device": config.train.tokens_per_device}
    for key in (key for key, is_set in by_tokens.items() if is_set):
        what = "kl reads as many old rows as a micro-batch has new ones, which is no number of rows"
        yield Problem(key, what, "use train.per_device_train_batch_size")


def with_base(config: SFTConfig, model: ModelFacts) -> ModelFacts:
    """Returns the facts of what is trained as one module: the model and its frozen copy, with the states that this
    leaves for the head and two more chunks of logits."""
    if not config.compares_with_base:
        return model
    rows, length = micro_batch_of(config).shape(model.task)
    states = FLOAT32 * rows * length * model.hidden_size
    chunks = FLOAT32 * 2 * model.vocab_size * min(LOGITS_CHUNK, rows * length)
    frozen = tuple(tensors.model_copy(update={"trainable": False}) for tensors in model.tensors)
    return model.model_copy(
        update={
            "tensors": (*model.tensors, *frozen),
            "num_parameters": 2 * model.num_parameters,
            "footprints": tuple(footprint.grown(states, chunks) for footprint in model.footprints),
        }
    )


PLANNER = SFTPlanner()
