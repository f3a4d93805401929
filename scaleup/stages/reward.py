"""A reward model: pairs of responses -> the one loop -> a classifier's folder that says how its scores are read."""

from __future__ import annotations

from typing import Any

from scaleup.artifacts.reward_file import REWARD_FILE, SavedReward
from scaleup.artifacts.run_folder import RunFolder
from scaleup.config.stages import RewardConfig
from scaleup.data.dataset import TrainingData, load_training_data
from scaleup.data.pairs import PairEncoder, pair_collator
from scaleup.data.tokenization import FILLER, Tokens
from scaleup.distributed.runtime import Runtime
from scaleup.evaluation.preference import preference_metrics, score_pairs
from scaleup.evaluation.report import finish_training
from scaleup.models.classifier import plain_padding
from scaleup.models.load import load_tokenizer
from scaleup.models.scoring import Reader
from scaleup.plan.types import Plan
from scaleup.train.preference import preference_loss
from scaleup.train.supervised import train_supervised

REFERENCE_PAIRS = 256
"""Of each training source, where there are no validation pairs."""


def run(config: RewardConfig, plan: Plan, runtime: Runtime, folder: RunFolder) -> None:
    assert plan.model.pooling is not None
    runtime.progress.report("reading data")
    tokenizer = load_tokenizer(config.model, plan.model.tokenizer_location or plan.model.location)
    reader = Reader(tokenizer, plan.model.pooling, config.reward.template, config.data.max_length)
    encoder = PairEncoder(reader.ids, reader.cut, config.data)
    data = load_training_data(config, encoder)
    collate = pair_collator(reader.pad_id, reader.filler_id)
    objective = preference_loss(config.reward.center_coefficient)
    done = train_supervised(config, plan, runtime, folder, data, lambda model: collate, objective)

    runtime.progress.report("scoring reference samples")
    reference = reference_pairs(data)
    scores = score_pairs(runtime, done.wrapped, reference, collate, config.train.per_device_eval_batch_size)
    found = preference_metrics(scores, reference) if data.validation else {}
    measured: dict[str, Any] = {f"eval_{name}": value for name, value in found.items()}
    measured |= {f"left_out_{reason}": count for reason, count in sorted(encoder.left_out.items())}
    saved = SavedReward(
        template=reader.template,
        max_length=reader.max_length,
        mean=float(scores.mean()),
        std=float(scores.std()) or 1.0,
    )
    plain_padding(done.model, tokenizer)
    beside = {REWARD_FILE: saved.model_dump()}
    num_dropped = sum(encoder.left_out.values())
    finish_training(config, plan, runtime, folder, done.wrapped, tokenizer, done.state, num_dropped, measured, beside)


def reference_pairs(data: TrainingData) -> list[Tokens]:
    """What scores are normalised on: the validation pairs, else some of the training pairs."""
    if data.validation:
        return data.validation
    count = min(REFERENCE_PAIRS, data.num_rows or REFERENCE_PAIRS)
    drawn = [source.draw(number) for source in data.sources for number in range(count)]
    return [row for row in drawn if row is not FILLER]
