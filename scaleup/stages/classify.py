"""Texts with a class go in; a sequence classifier's folder comes out, by the one loop."""

from __future__ import annotations

from scaleup.config.stages.classify import ClassifyConfig
from scaleup.data.dataset import load_training_data
from scaleup.data.sources import MapSource
from scaleup.evaluation.classification import class_metrics, logits_of, scalars
from scaleup.models.classifier import plain_padding
from scaleup.models.load import load_tokenizer
from scaleup.train.classify import class_objective, class_weights, weighted
from scaleup.train.finish import TrainedModel, finish_training
from scaleup.train.job import Job
from scaleup.train.reading import reading_of
from scaleup.train.supervised import train_supervised
from scaleup.train.tally import Tally


def run(job: Job[ClassifyConfig]) -> None:
    config, facts, runtime = job.config, job.plan.model, job.runtime
    targets = facts.targets
    runtime.progress.report("reading data")
    tokenizer = load_tokenizer(config.model, facts.tokenizer_at)
    reading = reading_of(facts, tokenizer, config.data)
    data = load_training_data(config, reading.encoder, runtime.progress)
    rows = (row for source in data.sources if isinstance(source, MapSource) for row in source.rows)
    weights = class_weights(config.classify.class_weights, targets, rows)
    collate, tally = reading.collator(None), Tally()
    counting = collate if weights is None or targets.problem != "single_label" else weighted(collate, weights)
    held = None if weights is None else weights.to(runtime.device)
    objective = class_objective(targets.problem, held, tally)
    done = train_supervised(job, data, lambda model: counting, objective, tally=tally)

    metrics = {}
    if data.validation:
        runtime.progress.report("measuring validation rows")
        batch_size = config.train.per_device_eval_batch_size
        logits = logits_of(runtime, done.wrapped, collate, data.validation, batch_size)
        found = class_metrics(logits, data.validation, targets)
        metrics = {f"eval_{name}": value for name, value in scalars(found).items()}
    plain_padding(done.model, tokenizer)
    finish_training(job, TrainedModel(done.wrapped, tokenizer, done.state, data.left_out), metrics)
