"""Rows go in; a fine-tuned model's folder, its card and a manifest come out: rows -> tokens -> the one loop."""

from __future__ import annotations

from typing import Any

from scaleup.config.stages.sft import SFTConfig
from scaleup.data.collate import Collator
from scaleup.data.dataset import collator_for, load_training_data
from scaleup.data.tokenization import Encoder
from scaleup.models.load import load_tokenizer, pad_token_id
from scaleup.train.finish import TrainedModel, finish_training
from scaleup.train.job import Job
from scaleup.train.losses import token_loss_sum
from scaleup.train.supervised import train_supervised


def run(job: Job[SFTConfig]) -> None:
    config, plan = job.config, job.plan
    job.runtime.progress.report("reading data")
    tokenizer = load_tokenizer(config.model, plan.model.tokenizer_at)
    data = load_training_data(config, Encoder(tokenizer, plan.model.task, config.data), job.runtime.progress)

    def collator(model: Any) -> Collator:
        shift_right = getattr(model, "prepare_decoder_input_ids_from_labels", None)
        return collator_for(plan.model.task, pad_token_id(tokenizer), shift_right, config.data.packing)

    done = train_supervised(job, data, collator, token_loss_sum)
    finish_training(job, TrainedModel(done.wrapped, tokenizer, done.state, data.left_out))
