"""From a distillation's config to a trained student."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from scaleup.artifacts.run_folder import RunFolder
from scaleup.compress.cached_teacher import with_cached_teacher
from scaleup.compress.taught import STUDENT, Taught
from scaleup.compress.teaching import distillation_loss, load_distillation
from scaleup.config.stages import DistillConfig
from scaleup.data.collate import Collator, taught_collator
from scaleup.data.dataset import load_training_data
from scaleup.distributed.runtime import Runtime
from scaleup.models.classifier import plain_padding
from scaleup.models.load import load_tokenizer
from scaleup.plan.types import Plan
from scaleup.train.reading import reading_of
from scaleup.train.state import TrainState
from scaleup.train.supervised import train_supervised


@dataclass(frozen=True)
class Student:
    wrapped: Any
    """Under the run's strategy."""
    tokenizer: PreTrainedTokenizerBase
    state: TrainState
    num_dropped: int
    part: str | None = STUDENT
    """The module within it that is the result: it stands beside its teacher, or, None, by itself."""


def train_student(config: DistillConfig, plan: Plan, runtime: Runtime, folder: RunFolder) -> Student:
    """Raises ScaleupError as reading, loading and fitting do, and Stopped after a signal."""
    assert plan.teacher is not None
    teacher = plan.teacher
    runtime.progress.report("reading data")
    tokenizer = load_tokenizer(config.model, plan.model.tokenizer_location or plan.model.location)
    reading, cache = reading_of(plan.model, tokenizer, config.data, config.data.packing), config.distill.cache
    data = load_training_data(config, reading.encoder)
    if cache is not None:
        data = with_cached_teacher(config, cache, data, reading.collator, teacher, runtime, folder)

    def load() -> Taught:
        return load_distillation(config, plan.model, teacher, runtime.device)

    def collator(model: Taught) -> Collator:
        collate = reading.collator(model.student)
        return collate if cache is None else taught_collator(collate, cache.top_k)

    done = train_supervised(config, plan, runtime, folder, data, collator, distillation_loss, load)
    if plan.model.task == "sequence_classification":
        plain_padding(done.model.student, tokenizer)
    return Student(done.wrapped, tokenizer, done.state, data.num_dropped)
