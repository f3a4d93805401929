"""This module plans distillation: what cannot be taught is refused, and a teacher's memory and arithmetic are
counted."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from scaleup.config.adapters import SelectiveAdapter
from scaleup.config.data import RowFormat
from scaleup.config.schema import ModelConfig
from scaleup.config.stages.distill import DistillConfig
from scaleup.errors import Problem
from scaleup.plan.arithmetic import LOGITS_CHUNK
from scaleup.plan.batches import packing_problems
from scaleup.plan.compat import Tested
from scaleup.plan.compute import Rate, Workload, compute_plan
from scaleup.plan.facts import ModelFacts, ModelRequest, RowsRequest, Tensors
from scaleup.plan.machine import Machine
from scaleup.plan.memory import FLOAT32, gathered_bytes, micro_batch_of, predicted_memory
from scaleup.plan.model_path import adapter_folder
from scaleup.plan.rules import generation_problems, no_class_named, one_answer, packing_unsupported, quantized_beside
from scaleup.plan.stages.base import Facts, Rows
from scaleup.plan.stages.distill_modes import (
    cache_problems,
    on_policy_model_problems,
    on_policy_problems,
    top_k_problems,
    trained_alone,
    writing_memory,
)
from scaleup.plan.stages.supervised import SupervisedPlanner, no_preferences
from scaleup.plan.twins import NUM_ANSWER_TOKENS
from scaleup.plan.types import BatchPlan, ComputePlan, MemoryPlan
from scaleup.records.check import DataCheck
from scaleup.records.format_rules import holds_labels

TEACHER = "teacher"
"""Is the config key, and what the facts of that model go by."""


class DistillPlanner(SupervisedPlanner[DistillConfig]):
    tested = Tested(
        adapters=frozenset({"full", "lora"}),
        precisions=frozenset({"no"}),
        also=frozenset(
            {
                *(("full", strategy, None, "bf16") for strategy in ("ddp", "zero3", "fsdp2")),
                *(("lora", strategy, "4bit", "no") for strategy in ("single", "ddp")),
            }
        ),
        kind="a distillation into ",
    )
    takes_classifiers = True
    before_reads = "own"

    def generates(self, config: DistillConfig) -> bool:
        return config.distill.mode == "on_policy"

    def splits(self, config: DistillConfig) -> dict[str, Rows]:
        splits = super().splits(config)
        if config.distill.mode == "on_policy":
            return dict.fromkeys(splits, "prompts")
        return splits | {"train": "prompts"} if config.distill.mode == "sequence" else splits

    def tokenized(self, config: DistillConfig) -> dict[str, Rows]:
        return {} if config.distill.mode == "sequence" else super().tokenized(config)

    def readers(self, config: DistillConfig) -> dict[str, RowsRequest]:
        """Names the teacher too where it writes: otherwise it gets the student's tokens."""
        readers = super().readers(config)
        if config.distill.mode != "sequence" or not readers:
            return readers
        asked = {"splits": {"train": "prompts"}, "by_own_template": True}
        return readers | {TEACHER: readers["model"].model_copy(update=asked)}

    def model_paths(self, config: DistillConfig) -> dict[str, ModelConfig]:
        return super().model_paths(config) | {TEACHER: config.teacher}

    def quantized_problems(self, config: DistillConfig) -> Iterator[Problem]:
        yield from quantized_beside(TEACHER, config.teacher)
        yield from super().quantized_problems(config)

    def stage_problems(self, config: DistillConfig, machine: Machine) -> Iterator[Problem]:
        yield from distill_problems(config)
        yield from on_policy_problems(config)
        yield from no_preferences(config)

    def models(self, config: DistillConfig) -> dict[str, ModelRequest]:
        """Names the student with the layers it keeps, and its teacher."""
        models, layers = super().models(config), config.distill.student_layers
        update: dict[str, object] = {"layers": tuple(layers) if isinstance(layers, list) else layers}
        if learns_classes(config):
            update["task"] = "sequence_classification"
        student = models.pop("model").model_copy(update=update)
        return {"model": student, TEACHER: ModelRequest(**config.teacher.model_dump()), **models}

    def task_problems(
        self, config: DistillConfig, facts: ModelFacts, where: str, forms: list[RowFormat]
    ) -> Iterator[Problem]:
        yield from packing_problems(config, facts)  # what it teaches is looked at beside the teacher

    def model_problems(self, config: DistillConfig, facts: Facts) -> Iterator[Problem]:
        yield from pair_problems(config, facts["model"], facts[TEACHER])

    def twin(self, config: DistillConfig) -> dict[str, Any] | None:
        """Keeps the first of the twin's two layers where the student keeps some, and pairs them as by default."""
        distill, changes = config.distill, dict[str, Any]()
        if distill.student_layers is not None:
            changes["distill.student_layers"] = [0]
        if distill.hidden is not None and distill.hidden.layers is not None:
            changes["distill.hidden.layers"] = None
        if distill.mode != "offline":
            changes["distill.generation.max_new_tokens"] = NUM_ANSWER_TOKENS
        return changes

    def complete(self, config: DistillConfig, facts: Facts) -> Facts:
        """Gives a student without a head the labels of its teacher."""
        if facts["model"].labels:
            return facts
        student = facts["model"].model_copy(update={"new_labels": facts[TEACHER].classes})
        return {**facts, "model": student}

    def trained(self, config: DistillConfig, facts: Facts) -> ModelFacts:
        return distilled_facts(config, facts["model"], facts[TEACHER])

    def memory(self, config: DistillConfig, facts: Facts, strategy: str) -> MemoryPlan:
        return distillation_memory(config, facts["model"], facts[TEACHER], strategy)

    def compute(self, config: DistillConfig, facts: Facts, batch: BatchPlan, rate: Rate) -> ComputePlan | None:
        work = Workload(teacher=facts[TEACHER], is_cached=config.distill.cache is not None)
        return compute_plan(config, facts["model"], batch, rate, work)

    def notes(self, config: DistillConfig, facts: Facts, batch: BatchPlan | None, data: DataCheck) -> list[str]:
        return [*super().notes(config, facts, batch, data), *_padding_notes(facts["model"], facts[TEACHER])]

    def memory_notes(self, config: DistillConfig, facts: ModelFacts) -> list[str]:
        if config.distill.mode == "on_policy":
            return ["activations are not in the memory table: those of the student's own answers are not predicted"]
        return super().memory_notes(config, facts)

    def before(self, config: DistillConfig) -> ModelConfig | None:
        return config.teacher


def learns_classes(config: DistillConfig) -> bool:
    """Returns whether its rows are texts with a class."""
    return holds_labels(config.data, "train")


def distill_problems(config: DistillConfig) -> Iterator[Problem]:
    """Yields settings of a distillation that contradict one another."""
    distill = config.distill
    if distill.beta is not None and distill.divergence != "jsd":
        yield Problem(
            "distill.beta", f"has no meaning for {distill.divergence}", "use divergence: jsd, or leave it out"
        )
    yield from _writing_problems(config)
    yield from cache_problems(config)
    layers = distill.student_layers
    if layers is None:
        return
    if adapter_folder(config.model.path) is not None:
        what = f"{config.model.path} is an adapter, which fits all layers of its base"
        yield Problem("distill.student_layers", what, "export it first, and name the result in model.path")
    elif config.adapter is not None and not isinstance(config.adapter, SelectiveAdapter):
        what = "an adapter names its base, and no folder holds the one with some of the layers"
        yield Problem("distill.student_layers", what, "leave adapter out, or prune first and name the result")
    if config.quantization is not None:
        yield Problem("quantization", "layers are cut from weights as they are", "leave it out, or keep all layers")
    if isinstance(layers, list) and sorted(set(layers)) != layers:
        yield Problem("distill.student_layers", "must rise from one number to the next", "name each layer once")


def _writing_problems(config: DistillConfig) -> Iterator[Problem]:
    distill, generation = config.distill, config.distill.generation
    if distill.mode == "offline":
        if "generation" in distill.given:
            what = "has no meaning for rows as they are"
            yield Problem("distill.generation", what, "use mode: sequence or on_policy")
        return
    if generation.prompts is not None:
        yield Problem("distill.generation.prompts", "are those of data.train", "leave it out")
    if "seed" in generation.given:
        yield Problem("distill.generation.seed", "is train.seed here", "leave it out")
    yield from generation_problems(generation, "distill.generation")
    yield from one_answer(generation, "distill.generation", "one answer a prompt is learned")
    if config.data.streaming:
        what = "prompts are drawn from all rows"
        if distill.mode == "sequence":
            what = "the teacher answers all prompts before training"
        yield Problem("data.streaming", what, "leave it out")


def pair_problems(config: DistillConfig, student: ModelFacts, teacher: ModelFacts) -> Iterator[Problem]:
    """Yields conflicts between the files of both models that keep one from teaching the other."""
    if student.task != teacher.task:
        what = f"is a {teacher.task} model ({teacher.architecture}), and model is a {student.task} model"
        yield Problem("teacher.path", what, "name a teacher of the student's kind")
        return
    if student.task == "sequence_classification":
        yield from _class_problems(config, student, teacher)
    remedy = "name a teacher of the student's family"
    if student.vocabulary != teacher.vocabulary and student.tokenizer_size != teacher.tokenizer_size:
        what = f"its tokenizer has {teacher.tokenizer_size} tokens, and model's {student.tokenizer_size}"
        yield Problem("teacher.path", what, remedy)
    elif student.vocabulary != teacher.vocabulary:
        what = "its tokenizer maps the same tokens to different ids"
        yield Problem("teacher.path", what, f"{remedy}, or the tokenizer of both (model.tokenizer, teacher.tokenizer)")
    yield from hidden_problems(config, student, teacher)
    yield from top_k_problems(config, student, teacher)
    yield from on_policy_model_problems(config, student, teacher)


def _padding_notes(student: ModelFacts, teacher: ModelFacts) -> list[str]:
    if student.vocab_size == teacher.vocab_size or student.task == "sequence_classification":
        return []
    sizes = f"teacher has {teacher.vocab_size} embeddings and model {student.vocab_size}, for one tokenizer"
    return [f"{sizes} of {student.tokenizer_size} ids: the padding beyond is left out of both distributions"]


def _class_problems(config: DistillConfig, student: ModelFacts, teacher: ModelFacts) -> Iterator[Problem]:
    if not learns_classes(config):
        yield no_class_named()
    if len(teacher.classes) < 2:
        what = f"has {len(teacher.classes) or 'no'} label, and a classifier's probabilities are taught"
        yield Problem("teacher.path", what, "name a classifier of two labels or more")
    elif teacher.targets.problem != "single_label":
        what = f"is a classifier of {teacher.problem}, and the probabilities of classes are taught"
        yield Problem("teacher.path", what, "name a classifier of single_label")
    elif student.classes and student.classes != teacher.classes:
        what = f"its labels are {', '.join(teacher.classes)}, and model's {', '.join(student.classes)}"
        yield Problem("teacher.path", what, "name a teacher of the same labels, or a student without a head")
    if config.data.packing:
        yield packing_unsupported("classifiers")


def hidden_problems(config: DistillConfig, student: ModelFacts, teacher: ModelFacts) -> Iterator[Problem]:
    """Yields hidden states that one of two models does not have, or that cannot be compared."""
    hidden = config.distill.hidden
    if hidden is None:
        return
    for place, pair in enumerate(hidden.layers or []):
        for name, layer, facts in zip(("model", TEACHER), pair, (student, teacher), strict=True):
            if layer >= facts.num_layers:
                what = f"{name} has no layer {layer}"
                yield Problem(f"distill.hidden.layers.{place}", what, f"its layers are 0 to {facts.num_layers - 1}")
    if hidden.layers is None and student.num_layers > teacher.num_layers:
        what = f"are needed: {student.num_layers} layers of the student have no {teacher.num_layers} teachers each"
        yield Problem("distill.hidden.layers", what, "name the pairs")
    if hidden.loss == "cosine" and not hidden.projection and student.hidden_size != teacher.hidden_size:
        what = f"cosine compares states of {student.hidden_size} numbers with states of {teacher.hidden_size}"
        yield Problem("distill.hidden.loss", what, "set distill.hidden.projection: true, or use mse")


def distilled_facts(config: DistillConfig, student: ModelFacts, teacher: ModelFacts) -> ModelFacts:
    """Returns the facts of what is trained as one module: the student with its teacher, frozen, and with what the
    teacher leaves for the loss of a micro-batch: a state a position for each pair of layers and, of a language model,
    one for its head and three chunks of logits. What lives within the teacher's forward pass is less than the student's
    activations, which come after."""
    if config.distill.cache is not None:
        return trained_alone(config, config.distill.cache, student)
    rows, length = micro_batch_of(config).shape(student.task)
    is_language = student.task != "sequence_classification"
    hidden = config.distill.hidden
    pairs = 0 if hidden is None else len(hidden.layers or ()) or student.num_layers
    states = FLOAT32 * rows * length * teacher.hidden_size * (is_language + pairs)
    width = 2 * student.vocab_size + teacher.vocab_size if is_language else 3 * len(teacher.classes)
    chunks = FLOAT32 * width * (min(LOGITS_CHUNK, rows * length) if is_language else rows)
    frozen = [tensors.model_copy(update={"trainable": False}) for tensors in teacher.tensors]
    frozen += _projections(config, student, teacher, pairs)
    trained = sum(tensors.elements * tensors.count for tensors in frozen if tensors.trainable)
    return student.model_copy(
        update={
            "tensors": (*student.tensors, *frozen),
            "num_parameters": student.num_parameters + teacher.num_parameters + trained,
            "num_trainable_parameters": student.num_trainable_parameters + trained,
            "largest_block": max(student.largest_block, teacher.largest_block),
            "footprints": tuple(footprint.grown(states, chunks) for footprint in student.footprints),
        }
    )


def distillation_memory(config: DistillConfig, student: ModelFacts, teacher: ModelFacts, strategy: str) -> MemoryPlan:
    """Returns the bytes that a rank holds under a strategy, the teacher's weights as `reference` if it is loaded."""
    count = config.parallel.num_processes
    if config.distill.cache is not None:
        memory = predicted_memory(distilled_facts(config, student, teacher), config, strategy, count)
        return writing_memory(memory, teacher)
    on_policy = config.distill.mode == "on_policy"
    if on_policy:  # caches of keys and values, and rows as long as answers, were never traced
        student = student.model_copy(update={"footprints": ()})
    whole = predicted_memory(distilled_facts(config, student, teacher), config, strategy, count)
    alone = predicted_memory(student, config, strategy, count)
    update = {"weights": alone.weights, "reference": whole.weights - alone.weights}
    if on_policy:
        update["gathered"] = gathered_bytes(student, config, whole)
    return whole.model_copy(update=update)


def _projections(config: DistillConfig, student: ModelFacts, teacher: ModelFacts, pairs: int) -> list[Tensors]:
    hidden, widths = config.distill.hidden, (teacher.hidden_size, student.hidden_size)
    if hidden is None or not (hidden.projection or widths[0] != widths[1]):
        return []
    return [Tensors(shape=widths, count=pairs)]


PLANNER = DistillPlanner()
