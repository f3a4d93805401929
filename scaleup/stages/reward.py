"""Pairs of responses go in; a classifier's folder that says how its scores are read comes out, by the one loop."""

from __future__ import annotations

from typing import Any

from scaleup.artifacts.classifier_files import REWARD_FILE, SavedReward
from scaleup.config.stages.reward import RewardConfig
from scaleup.data.dataset import TrainingData, load_training_data
from scaleup.data.pairs import PairEncoder, pair_collator
from scaleup.data.tokenization import PairTokens
from scaleup.evaluation.preference import preference_metrics, score_pairs
from scaleup.models.classifier import plain_padding
from scaleup.models.load import load_tokenizer
from scaleup.train.finish import TrainedModel, finish_training
from scaleup.train.job import Job
from scaleup.train.preference import preference_loss
from scaleup.train.reading import pair_reader
from scaleup.train.supervised import train_supervised

REFERENCE_PAIRS = 256
"""Counts the pairs of each training source that are scored if there are no validation pairs."""


def run(job: Job[RewardConfig]) -> None:
    config, plan, runtime = job.config, job.plan, job.runtime
    runtime.progress.report("reading data")
    tokenizer = load_tokenizer(config.model, plan.model.tokenizer_at)
    reader = pair_reader(plan.model, tokenizer, config.data, config.reward.template)
    encoder = PairEncoder(reader, config.data)
    data = load_training_data(config, encoder, runtime.progress)
    collate = pair_collator(reader.pad_id, reader.filler_id)
    objective = preference_loss(config.reward.center_coefficient)
    done = train_supervised(job, data, lambda model: collate, objective)

    runtime.progress.report("scoring reference samples")
    reference = reference_pairs(data)
    scores = score_pairs(runtime, done.wrapped, reference, collate, config.train.per_device_eval_batch_size)
    evaluated = preference_metrics(scores, reference) if data.validation else {}
    metrics: dict[str, Any] = {f"eval_{name}": value for name, value in evaluated.items()}
    metrics |= {f"left_out_{reason}": count for reason, count in sorted(data.left_out.items())}
    saved = SavedReward(
        template=reader.template,
        max_length=reader.max_length,
        mean=float(scores.mean()),
        std=float(scores.std()) or 1.0,
    )
    plain_padding(done.model, tokenizer)
    trained = TrainedModel(done.wrapped, tokenizer, done.state, left_out=data.left_out)
    finish_training(job, trained, metrics, {REWARD_FILE: saved.model_dump()})


def reference_pairs(data: TrainingData) -> list[PairTokens]:
    """Return the pairs on which scores are normalised: the validation pairs, else some of the training pairs."""
    if data.validation:
        return [row for row in data.validation if isinstance(row, PairTokens)]
    count = min(REFERENCE_PAIRS, data.num_rows or REFERENCE_PAIRS)
    drawn = [source.draw(number) for source in data.sources for number in range(count)]
    return [row for row in drawn if isinstance(row, PairTokens)]
