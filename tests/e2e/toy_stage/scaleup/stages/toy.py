"""The toy stage: rows -> tokens -> the one loop with smoothed labels -> a model folder."""

from __future__ import annotations

from typing import Any

from scaleup.config.stages.toy import ToyConfig
from scaleup.train.toy import smoothed_loss

from scaleup.data.collate import Collator
from scaleup.data.dataset import collator_for, load_training_data
from scaleup.data.tokenization import Encoder
from scaleup.models.load import load_tokenizer, pad_token_id
from scaleup.train.finish import TrainedModel, finish_training
from scaleup.train.job import Job
from scaleup.train.model import trainable_model
from scaleup.train.supervised import train_supervised


def run(job: Job[ToyConfig]) -> None:
    config, plan = job.config, job.plan
    tokenizer = load_tokenizer(config.model, plan.model.tokenizer_at)
    data = load_training_data(config, Encoder(tokenizer, plan.model.task, config.data))

    def load() -> Any:
        return trainable_model(config, plan.model, job.runtime.device)

    def collator(model: Any) -> Collator:
        return collator_for(plan.model.task, pad_token_id(tokenizer), None, config.data.packing)

    done = train_supervised(job, data, collator, smoothed_loss(config.toy.label_smoothing), load)
    finish_training(job, TrainedModel(done.wrapped, tokenizer, done.state, data.left_out))
