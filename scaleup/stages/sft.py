"""Rows go in; a fine-tuned model's folder, its card and a manifest come out: rows -> tokens -> the one loop. A term
against forgetting holds weights where they were, or what the model says of old rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from scaleup.config.stages.sft import Regularization, SFTConfig
from scaleup.data.collate import Collator
from scaleup.data.dataset import TrainingData, load_training_data, source_rows
from scaleup.data.loader import Split, TrainLoader
from scaleup.data.rows import Joined, Rows
from scaleup.data.sources import MapSource
from scaleup.distill.module import STUDENT
from scaleup.distill.old_rows import OldBesideNew, load_with_old_self, loss_beside_old_self
from scaleup.evaluation.while_training import answering
from scaleup.models.beside import unwrap
from scaleup.models.kernels import compile_layers, use_liger
from scaleup.models.load import load_tokenizer
from scaleup.train.anchor import Anchor, fisher_information
from scaleup.train.finish import TrainedModel, finish_training
from scaleup.train.fit import Feed
from scaleup.train.job import Job
from scaleup.train.losses import token_loss_sum
from scaleup.train.model import model_to_train
from scaleup.train.reading import Reading, reading_of
from scaleup.train.supervised import Trained, train_supervised
from scaleup.train.tally import Tally


def run(job: Job[SFTConfig]) -> None:
    config, plan, progress = job.config, job.plan, job.runtime.progress
    progress.report("reading data")
    tokenizer = load_tokenizer(config.model, plan.model.tokenizer_at)
    reading = reading_of(plan.model, tokenizer, config.data, config.data.packing)
    data = load_training_data(config, reading.encoder, progress)
    old = source_rows(config.data, "regularization", reading.encoder, progress)
    term, part = config.regularization, STUDENT if config.compares_with_base else None
    answers = answering(job, tokenizer, data.validation, part)
    if term is None:
        load = partial(_model, job)
        done = train_supervised(
            job, data, reading.collator, token_loss_sum, load, feed=lambda of, _, rows: answers(of, rows)
        )
    elif config.compares_with_base:
        done = _beside_old_self(job, term, data, old, reading, answers)
    else:
        done = _anchored(job, term, data, old, reading, answers)
    finish_training(job, TrainedModel(done.wrapped, tokenizer, done.state, data.left_out, part))


def _model(job: Job[SFTConfig]) -> Any:
    """Load the model to train, with the kernels that the config asks for."""
    config = job.config
    model = model_to_train(config, job.plan.model, job.runtime.device)
    if config.use_liger_kernel:
        use_liger(model)
    if config.torch_compile:
        compile_layers(model)
    return model


def _anchored(
    job: Job[SFTConfig],
    term: Regularization,
    data: TrainingData,
    old: Sequence[Rows],
    reading: Reading,
    answers: Callable[[Any, Feed], Feed],
) -> Trained:
    """Train with weights that are drawn back to where they were: all alike, or by their Fisher information of old
    rows."""

    def feed(model: Any, optimizer: Any, rows: Feed) -> Feed:
        prepared, fisher = (job.runtime, model, optimizer), None
        if term.reads_rows:
            collate = reading.collator(unwrap(model))
            fisher = fisher_information(*prepared, Joined(old), collate, token_loss_sum)
        rows = answers(model, rows)
        return replace(rows, measured=Anchor.at(*prepared, term.weight, fisher).measured)

    return train_supervised(job, data, reading.collator, token_loss_sum, partial(_model, job), feed=feed)


def _beside_old_self(
    job: Job[SFTConfig],
    term: Regularization,
    data: TrainingData,
    old: Sequence[Rows],
    reading: Reading,
    answers: Callable[[Any, Feed], Feed],
) -> Trained:
    """Train beside a frozen copy of the model, whose predictions of old rows it keeps."""
    config, plan, runtime = job.config, job.plan, job.runtime
    assert plan.batch is not None
    split = Split(plan.batch.micro_batch, plan.batch.accumulation, runtime.rank, runtime.world)
    weights = [source.weight for source in config.data.regularization or []]
    sources = [MapSource(rows, [config.train.seed, number], config.data.shuffle) for number, rows in enumerate(old)]

    def collator(model: Any) -> Collator:
        return reading.collator(model.student)

    def feed(model: Any, _: Any, rows: Feed) -> Feed:
        beside = TrainLoader(sources, weights, collator(unwrap(model)), split, None)
        rows = answers(model, rows)
        return replace(rows, loader=OldBesideNew(runtime, rows.loader, beside, term.weight))

    def load() -> Any:
        return load_with_old_self(config, plan.model, runtime.device)

    tally = Tally()
    return train_supervised(job, data, collator, loss_beside_old_self(tally), load, tally, feed)
