"""One training of a reward model, by TRL's RewardTrainer and by our pieces: the same tokens, losses and weights."""

import copy

import pytest
import torch
from datasets import Dataset
from trl import RewardConfig, RewardTrainer

from scaleup.config.data import DataConfig
from scaleup.config.schema import TrainConfig
from scaleup.data.loader import Split, TrainLoader
from scaleup.data.pairs import PairEncoder, pair_collator
from scaleup.data.sources import MapSource
from scaleup.models.scoring import Reader
from scaleup.records.preferences import Preference
from scaleup.train.optim import build_optimizer, build_schedule
from scaleup.train.preference import preference_loss
from scaleup.train.step import train_step
from tests.parity.test_trl_trajectory import ACCUMULATION, MICRO, STEPS, TRAIN, arguments, assert_same_run, logged
from tests.unit.data import tiny

PAIRS = [
    Preference("", f"it was {'so ' * (i % 7)}good", f"it was {'not ' * (i % 4)}bad", float(i % 3))
    for i in range(STEPS * MICRO * ACCUMULATION)
]


@pytest.mark.parametrize("center", [None, 0.05])
def test_the_trajectory_is_that_of_trl(center: float | None, tmp_path) -> None:  # type: ignore[no-untyped-def]
    tokenizer, start = tiny.tokenizer("llama"), tiny.classifier("llama")
    theirs, ours = copy.deepcopy(start), copy.deepcopy(start)
    theirs.score.__class__ = torch.nn.Linear
    rows = [{"chosen": pair.chosen, "rejected": pair.rejected, "margin": pair.margin} for pair in PAIRS]
    settings = arguments(RewardConfig, tmp_path, max_length=64, center_rewards_coefficient=center)
    trainer = RewardTrainer(theirs, args=settings, train_dataset=Dataset.from_list(rows), processing_class=tokenizer)
    expected = logged(trainer)

    reader = Reader(tokenizer, "last", max_length=64)
    encoded = [row for row in PairEncoder(reader, DataConfig(max_length=64))(PAIRS) if row is not None]
    assert [row.chosen.tolist() for row in encoded] == trainer.train_dataset["chosen_ids"][:]
    assert [row.rejected.tolist() for row in encoded] == trainer.train_dataset["rejected_ids"][:]
    runtime, train = tiny.single_process(tmp_path), TrainConfig(**TRAIN, optimizer="sgd")
    split = Split(MICRO, ACCUMULATION, runtime.rank, runtime.world)
    collate = pair_collator(reader.pad_id, reader.filler_id)
    loader = TrainLoader([MapSource(encoded, [0], shuffle=False)], [1.0], collate, split, None)
    optimizer = build_optimizer(ours, train)
    schedule = build_schedule(optimizer, train, STEPS)
    wrapped, optimizer = runtime.prepare(ours.train(), optimizer)
    losses, norms = [], []
    for step in range(STEPS):
        result = train_step(runtime, wrapped, optimizer, loader.batches(step), preference_loss(center), 1.0)
        schedule.step()
        losses.append(result.loss)
        norms.append(result.grad_norm)
    assert_same_run((losses, norms), expected, ours, theirs, start)


def test_fillers_are_nothing() -> None:
    """Nor is the rows' padding, or which side of a step they stand on."""
    from scaleup.data.tokenization import FILLER

    model, tokenizer = tiny.classifier("llama"), tiny.tokenizer("llama")
    reader = Reader(tokenizer, "last", max_length=64)
    rows = [row for row in PairEncoder(reader, DataConfig(max_length=64))(PAIRS[:3]) if row is not None]
    collate, objective = pair_collator(reader.pad_id, reader.filler_id), preference_loss(0.1)
    alone = sum(float(objective(model, collate([row]))) for row in rows)
    batch = collate([rows[0], FILLER, *rows[1:]])
    assert batch.num_labels == 3
    assert batch.num_tokens == sum(len(row.chosen) + len(row.rejected) for row in rows)
    assert float(objective(model, batch)) == pytest.approx(alone, abs=1e-5)
    nothing = objective(model, collate([FILLER]))
    nothing.backward()
    assert float(nothing) == 0.0
    assert all(not parameter.grad.any() for parameter in model.parameters() if parameter.grad is not None)
