"""From a distillation's config to a trained student."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from scaleup.artifacts.run_folder import RunFolder
from scaleup.compress.cached_teacher import with_cached_teacher
from scaleup.compress.taught import Taught
from scaleup.compress.teaching import distillation_loss, load_distillation
from scaleup.config.stages import DistillConfig
from scaleup.data.collate import Collator, taught_collator
from scaleup.data.dataset import collator_for, load_training_data
from scaleup.data.labelled import LabelledEncoder, labelled_collator
from scaleup.data.tokenization import Encoder, RowEncoder
from scaleup.distributed.runtime import Runtime
from scaleup.models.classifier import plain_padding
from scaleup.models.load import load_tokenizer, pad_token_id
from scaleup.models.scoring import Reader
from scaleup.plan.types import Plan
from scaleup.train.state import TrainState
from scaleup.train.supervised import train_supervised


@dataclass(frozen=True)
class Student:
    wrapped: Any
    """With its teacher, under the run's strategy; what counts is its part STUDENT."""
    tokenizer: PreTrainedTokenizerBase
    state: TrainState
    num_dropped: int


def train_student(config: DistillConfig, plan: Plan, runtime: Runtime, folder: RunFolder) -> Student:
    """Raises ScaleupError as reading, loading and fitting do, and Stopped after a signal."""
    assert plan.teacher is not None
    teacher = plan.teacher
    runtime.progress.report("reading data")
    tokenizer = load_tokenizer(config.model, plan.model.tokenizer_location or plan.model.location)
    encoder, collator_of = _reading(config, plan, tokenizer)
    data, cache = load_training_data(config, encoder), config.distill.cache
    if cache is not None:
        data = with_cached_teacher(config, cache, data, collator_of, teacher, runtime, folder)

    def load() -> Taught:
        return load_distillation(config, plan.model, teacher, runtime.device)

    def collator(model: Taught) -> Collator:
        collate = collator_of(model.student)
        return collate if cache is None else taught_collator(collate, cache.top_k)

    done = train_supervised(config, plan, runtime, folder, data, collator, distillation_loss, load)
    if plan.model.task == "sequence_classification":
        plain_padding(done.model.student, tokenizer)
    return Student(done.wrapped, tokenizer, done.state, data.num_dropped)


def _reading(
    config: DistillConfig, plan: Plan, tokenizer: PreTrainedTokenizerBase
) -> tuple[RowEncoder, Callable[[Any], Collator]]:
    """How rows become tokens, and tokens a batch for a model: the student, or its teacher."""
    if plan.model.task != "sequence_classification":

        def collator(model: Any) -> Collator:
            shift_right = getattr(model, "prepare_decoder_input_ids_from_labels", None)
            return collator_for(plan.model.task, pad_token_id(tokenizer), shift_right, config.data.packing)

        return Encoder(tokenizer, plan.model.task, config.data), collator
    assert plan.model.pooling is not None
    labels = plan.model.labels or plan.model.new_labels
    reader = Reader(tokenizer, plan.model.pooling, max_length=config.data.max_length)
    collate = labelled_collator(reader.pad_id, reader.filler_id)
    return LabelledEncoder(reader, labels, config.data), lambda model: collate
