"""Distillation: what cannot be taught, and what a teacher costs."""

from __future__ import annotations

from collections.abc import Iterator

from scaleup.config.adapters import SelectiveAdapter
from scaleup.config.schema import ModelConfig, RunConfig
from scaleup.config.stages import DistillConfig
from scaleup.errors import Problem
from scaleup.plan.cached_teacher import cache_problems, top_k_problems, trained_alone, writing_memory
from scaleup.plan.facts import AskedModel, ModelFacts, Tensors
from scaleup.plan.machine import Machine
from scaleup.plan.memory import FLOAT32
from scaleup.plan.model_path import adapter_folder
from scaleup.plan.on_policy import on_policy_model_problems
from scaleup.plan.peak import CHUNK, micro_batch_of, predicted_memory
from scaleup.plan.reward import holds_labels
from scaleup.plan.types import MemoryPlan
from scaleup.records.examples import row_format

TEACHER = "teacher"
"""The config key, and what the facts of that model go by."""


def distillation_models(config: DistillConfig, student: ModelConfig) -> dict[str, ModelConfig]:
    """What to ask about: the student with the layers it keeps, and its teacher."""
    layers = config.distill.student_layers
    kept = tuple(layers) if isinstance(layers, list) else layers
    if learns_classes(config):
        student = student.model_copy(update={"task": "sequence_classification"})
    return {"model": student.model_copy(update={"layers": kept}), TEACHER: AskedModel(**config.teacher.model_dump())}


def learns_classes(config: DistillConfig) -> bool:
    """Whether its rows are texts with a class."""
    return holds_labels(config, "train")


def distill_problems(config: RunConfig, machine: Machine) -> Iterator[Problem]:
    if not isinstance(config, DistillConfig):
        return
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
        if "generation" in distill.model_fields_set:
            what = "has no meaning for rows as they are"
            yield Problem("distill.generation", what, "use mode: sequence or on_policy")
        return
    if generation.prompts is not None:
        yield Problem("distill.generation.prompts", "are those of data.train", "leave it out")
    if generation.top_p < 1 and generation.temperature == 0:
        yield Problem("distill.generation.top_p", "has no meaning for greedy decoding", "give a temperature above 0")
    if config.data.streaming:
        what = "prompts are drawn from all rows"
        if distill.mode == "sequence":
            what = "the teacher answers all prompts before training"
        yield Problem("data.streaming", what, "leave it out")
    if distill.mode == "on_policy":
        return
    if any(row_format(config.data, source).messages is not None for source in config.data.train or []):
        yield Problem("data.messages", "the teacher's answers are written as rows of text", "give data.prompt")


def pair_problems(config: DistillConfig, student: ModelFacts, teacher: ModelFacts) -> Iterator[Problem]:
    """What the files of both models say against teaching the one by the other."""
    if student.task != teacher.task:
        what = f"is a {teacher.task} model ({teacher.architecture}), and model is a {student.task} model"
        yield Problem("teacher.path", what, "name a teacher of the student's kind")
        return
    if student.task == "sequence_classification":
        yield from _class_problems(config, student, teacher)
    remedy = "name a teacher of the student's family"
    if student.vocab_size != teacher.vocab_size:
        what = f"has a vocabulary of {teacher.vocab_size} tokens, and model one of {student.vocab_size}"
        yield Problem("teacher.path", what, remedy)
    elif student.vocabulary != teacher.vocabulary:
        what = "its tokenizer has other ids for the same tokens than model's"
        yield Problem("teacher.path", what, f"{remedy}, or the tokenizer of both (model.tokenizer, teacher.tokenizer)")
    yield from hidden_problems(config, student, teacher)
    yield from top_k_problems(config, student)
    yield from on_policy_model_problems(config, student, teacher)


def _class_problems(config: DistillConfig, student: ModelFacts, teacher: ModelFacts) -> Iterator[Problem]:
    if not learns_classes(config):
        what = "says nothing of a text's class, and model is a classifier"
        yield Problem("data", what, "give data.text and data.label")
    if len(teacher.labels) < 2:
        what = f"has {len(teacher.labels) or 'no'} label, and a classifier's probabilities are taught"
        yield Problem("teacher.path", what, "name a classifier of two labels or more")
    elif student.labels and student.labels != teacher.labels:
        what = f"its labels are {', '.join(teacher.labels)}, and model's {', '.join(student.labels)}"
        yield Problem("teacher.path", what, "name a teacher of the same labels, or a student without a head")
    if config.data.packing:
        yield Problem("data.packing", "is of language models: each text has a class of its own", "leave it out")


def hidden_problems(config: DistillConfig, student: ModelFacts, teacher: ModelFacts) -> Iterator[Problem]:
    """Hidden states that one of two models does not have, or that cannot be compared."""
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
    """Of what is trained as one module: the student with its teacher, frozen, and with what the teacher leaves for the
    loss of a micro-batch, which is a state a position for its head, one for each pair of layers, and three chunks of
    logits. What lives within the teacher's forward pass is less than the student's activations, which come after."""
    if config.distill.cache is not None:
        return trained_alone(config, config.distill.cache, student)
    rows, length = micro_batch_of(config).shape(student.task != "causal_lm")
    hidden = config.distill.hidden
    pairs = 0 if hidden is None else len(hidden.layers or ()) or student.num_layers
    states = FLOAT32 * rows * length * teacher.hidden_size * (1 + pairs)
    chunks = 3 * FLOAT32 * min(CHUNK, rows * length) * student.vocab_size
    frozen = [tensors.model_copy(update={"trainable": False}) for tensors in teacher.tensors]
    frozen += _projections(config, student, teacher, pairs)
    trained = sum(tensors.elements * tensors.count for tensors in frozen if tensors.trainable)
    return student.model_copy(
        update={
            "tensors": (*student.tensors, *frozen),
            "num_parameters": student.num_parameters + teacher.num_parameters + trained,
            "num_trainable_parameters": student.num_trainable_parameters + trained,
            "largest_block": max(student.largest_block, teacher.largest_block),
            "footprints": tuple(found.grown(states, chunks) for found in student.footprints),
        }
    )


def distillation_memory(config: DistillConfig, student: ModelFacts, teacher: ModelFacts, strategy: str) -> MemoryPlan:
    """What a rank holds under a strategy, the teacher's weights as `reference`, if it is there."""
    count = config.parallel.num_processes
    if config.distill.cache is not None:
        found = predicted_memory(distilled_facts(config, student, teacher), config, strategy, count)
        return writing_memory(found, teacher)
    if config.distill.mode == "on_policy":  # what lives within TRL's steps was never measured
        student = student.model_copy(update={"footprints": ()})
    whole = predicted_memory(distilled_facts(config, student, teacher), config, strategy, count)
    alone = predicted_memory(student, config, strategy, count)
    return whole.model_copy(update={"weights": alone.weights, "reference": whole.weights - alone.weights})


def _projections(config: DistillConfig, student: ModelFacts, teacher: ModelFacts, pairs: int) -> list[Tensors]:
    hidden, widths = config.distill.hidden, (teacher.hidden_size, student.hidden_size)
    if hidden is None or not (hidden.projection or widths[0] != widths[1]):
        return []
    return [Tensors(shape=widths, count=pairs)]
