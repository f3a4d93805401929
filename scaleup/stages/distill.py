"""Distillation: rows -> tokens -> what student and teacher make of them -> the one loop -> the student's folder."""

from __future__ import annotations

from scaleup.artifacts.run_folder import RunFolder
from scaleup.compress.distillation import STUDENT, Distillation, distillation_loss, load_distillation
from scaleup.config.stages import DistillConfig
from scaleup.data.collate import Collator
from scaleup.data.dataset import collator_for, load_training_data
from scaleup.data.tokenization import Encoder
from scaleup.distributed.runtime import Runtime
from scaleup.evaluation.report import finish_training
from scaleup.models.load import load_tokenizer, pad_token_id
from scaleup.plan.types import Plan
from scaleup.train.supervised import train_supervised


def run(config: DistillConfig, plan: Plan, runtime: Runtime, folder: RunFolder) -> None:
    runtime.progress.report("reading data")
    tokenizer = load_tokenizer(config.model, plan.model.tokenizer_location or plan.model.location)
    data = load_training_data(config, Encoder(tokenizer, plan.model.task, config.data))

    def load() -> Distillation:
        assert plan.teacher is not None
        return load_distillation(config, plan.model, plan.teacher, runtime.device)

    def collator(model: Distillation) -> Collator:
        shift_right = getattr(model.student, "prepare_decoder_input_ids_from_labels", None)
        return collator_for(plan.model.task, pad_token_id(tokenizer), shift_right, config.data.packing)

    done = train_supervised(config, plan, runtime, folder, data, collator, distillation_loss, load)
    finish_training(config, plan, runtime, folder, done.wrapped, tokenizer, done.state, data.num_dropped, part=STUDENT)
