"""This module takes a distillation's config and returns a student trained beside its teacher."""

from __future__ import annotations

from typing import Any

import torch

from scaleup.config.stages.distill import DistillConfig
from scaleup.data.collate import Batch, Collator, top_k_collator
from scaleup.data.dataset import load_training_data
from scaleup.distill.cached_teacher import with_cached_teacher
from scaleup.distill.classifiers import ClassifierDistillation
from scaleup.distill.language import CachedDistillation, Distillation
from scaleup.distill.module import STUDENT, StudentWithTeacher
from scaleup.distributed.runtime import seed_everything
from scaleup.models.adapted import load_finished
from scaleup.models.classifier import plain_padding
from scaleup.models.load import load_tokenizer, num_ids_of
from scaleup.plan.facts import ModelFacts
from scaleup.train.finish import TrainedModel
from scaleup.train.job import Job
from scaleup.train.model import trainable_model
from scaleup.train.reading import reading_of
from scaleup.train.supervised import train_supervised


def train_student(job: Job[DistillConfig]) -> TrainedModel:
    """Trains the student on the run's rows, beside its teacher or what a cache holds of it.

    Raises ScaleupError as reading, loading and fitting do, and Stopped after a signal."""
    config, plan, runtime = job.config, job.plan, job.runtime
    teacher = plan.models["teacher"]
    runtime.progress.report("reading data")
    tokenizer = load_tokenizer(config.model, plan.model.tokenizer_at)
    reading, cache = reading_of(plan.model, tokenizer, config.data, config.data.packing), config.distill.cache
    data = load_training_data(config, reading.encoder, runtime.progress)
    num_ids = shared_ids(tokenizer, plan.model, teacher)
    if cache is not None:
        data = with_cached_teacher(job, cache, data, reading.collator, num_ids)

    def load() -> StudentWithTeacher:
        return load_distillation(config, plan.model, teacher, runtime.device, num_ids)

    def collator(model: StudentWithTeacher) -> Collator:
        collate = reading.collator(model.student)
        return collate if cache is None else top_k_collator(collate, cache.top_k)

    done = train_supervised(job, data, collator, distillation_loss, load)
    if plan.model.task == "sequence_classification":
        plain_padding(done.model.student, tokenizer)
    return TrainedModel(done.wrapped, tokenizer, done.state, data.left_out, STUDENT)


def shared_ids(tokenizer: Any, student: ModelFacts, teacher: ModelFacts) -> int | None:
    """Returns how many ids both models know; None where they have equally many, padding included."""
    if student.vocab_size == teacher.vocab_size:
        return None
    return min(num_ids_of(tokenizer), student.vocab_size, teacher.vocab_size)


def load_distillation(
    config: DistillConfig,
    facts: ModelFacts,
    teacher: ModelFacts,
    device: torch.device,
    num_ids: int | None = None,
) -> StudentWithTeacher:
    """Loads the student as stage `sft` would train it, and its teacher as it is, in float32, whose weights are read
    when the engine moves or shards them; none where its top k are cached. It is the same on every rank. Raises
    ScaleupError as loading does."""
    if config.distill.cache is not None:
        return CachedDistillation(trainable_model(config, facts, device), config.distill, num_ids)
    student, frozen = distillation_models(config, facts, teacher, device)
    if facts.task == "sequence_classification":
        return ClassifierDistillation(student, frozen, config.distill)
    return Distillation(student, frozen, config.distill, num_ids)


def distillation_models(
    config: DistillConfig, facts: ModelFacts, teacher: ModelFacts, device: torch.device
) -> tuple[Any, Any]:
    """Loads the student as stage `sft` would train it, and its teacher, whose weights are read when the engine moves or
    shards them; what is drawn beside them comes next, alike on every rank."""
    frozen = load_finished(config.teacher, teacher, None, config.mixed_precision, torch.device("cpu"), deferred=True)
    student = trainable_model(config, facts, device)
    seed_everything(config.train.seed)
    return student, frozen


def distillation_loss(model: Any, batch: Batch) -> torch.Tensor:
    """Returns the objective of the loop: the loss summed over a batch's labelled positions, a float32 scalar."""
    cached = {} if batch.teacher_top_k is None else {"teacher_top_k": batch.teacher_top_k}
    loss: torch.Tensor = model(labels=batch.labels, places=batch.places, **cached, **batch.inputs)
    return loss
