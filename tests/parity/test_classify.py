"""Classifiers against Transformers' own: 12 steps on the same batches, by SGD in float32, are those of its Trainer for
each problem and kind of model, however a step is split; and weighted losses are those of torch."""

from __future__ import annotations

import os
from copy import deepcopy
from unittest import mock

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from datasets import Dataset
from transformers import DataCollatorWithPadding, Trainer, TrainingArguments

from scaleup.config.data import DataConfig
from scaleup.config.schema import TrainConfig
from scaleup.data.loader import Split, TrainLoader
from scaleup.data.sources import MapSource
from scaleup.data.tokenization import LabelledTokens
from scaleup.describe.model import model_facts
from scaleup.models.load import load_model, load_tokenizer
from scaleup.plan.facts import ModelRequest
from scaleup.train.classify import class_losses, class_objective, class_weights, weighted
from scaleup.train.optim import build_optimizer, build_schedule
from scaleup.train.reading import reading_of
from scaleup.train.step import train_step
from tests.unit.data import tiny

STEPS, ROWS = 12, 4
TRAIN = {"learning_rate": 0.05, "lr_scheduler_type": "constant", "max_steps": STEPS, "max_grad_norm": 1.0}
NAMES = ("a", "b", "c")
LABELS = {
    "single_label": lambda n: n % 3,
    "multi_label": lambda n: [float(n % 2), float(n % 3 == 1), float(n % 5 < 2)],
    "regression": lambda n: [n % 7 / 3, -(n % 3) / 2, 0.5],
}
KINDS = [*(("bert", problem) for problem in LABELS), ("llama", "single_label"), ("t5", "single_label")]


def facts_of(name, problem):
    asked = ModelRequest(path=f"builtin:tiny-{name}", task="sequence_classification", new_labels=NAMES, problem=problem)
    with mock.patch.dict(os.environ, XDG_CACHE_HOME=tiny.CACHE.name):
        return asked, model_facts(asked)


def examples(problem):
    made = (LABELS[problem](n) for n in range(STEPS * ROWS))
    return [
        (f"{n}{' so' * (n % 6)} it was", label if problem == "single_label" else tuple(label))
        for n, label in enumerate(made)
    ]


def our_run(facts, rows, collate, model, folder, micro, weights=None):
    runtime, train = tiny.single_process(folder), TrainConfig(**TRAIN, optimizer="sgd")
    split = Split(micro, ROWS // micro, runtime.rank, runtime.world)
    loader = TrainLoader([MapSource(rows, [0], shuffle=False)], [1.0], collate, split, None)
    optimizer = build_optimizer(model, train)
    schedule = build_schedule(optimizer, train, STEPS)
    wrapped, optimizer = runtime.prepare(model.train(), optimizer)
    objective, lines = class_objective(facts.targets.problem, weights), []
    for step in range(STEPS):
        result = train_step(runtime, wrapped, optimizer, loader.batches(step), objective, train.max_grad_norm)
        schedule.step()
        lines.append({"loss": result.loss, "grad_norm": result.grad_norm})
    return lines


def their_run(trainer_class, rows, model, tokenizer, folder):
    columns = [{"input_ids": row.input_ids.tolist(), "labels": np.asarray(row.label).tolist()} for row in rows]
    settings = TrainingArguments(
        output_dir=str(folder),
        **TRAIN,
        optim="sgd",
        per_device_train_batch_size=ROWS,
        train_sampling_strategy="sequential",
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    collate = DataCollatorWithPadding(tokenizer)
    trainer = trainer_class(model, settings, collate, Dataset.from_list(columns))
    trainer.train()
    return [line for line in trainer.state.log_history if "grad_norm" in line]


class Weighted(Trainer):
    """As its documentation has it: a loss of one's own over the batch."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        labels = inputs.pop("labels")
        return F.cross_entropy(model(**inputs).logits, labels, torch.tensor([0.2, 0.05, 0.6]))


@pytest.mark.parametrize("weights", [False, True])
@pytest.mark.parametrize(("name", "problem"), KINDS)
def test_trajectory_is_that_of_the_trainer(name, problem, weights, tmp_path):
    if weights and (name, problem) != ("bert", "single_label"):
        pytest.skip("once is enough")
    asked, facts = facts_of(name, problem)
    torch.manual_seed(0)
    model = load_model(asked, facts)
    assert (facts.new_labels, model.config.problem_type.startswith(problem)) == (NAMES, True)
    tokenizer = load_tokenizer(asked, facts.location)
    reading = reading_of(facts, tokenizer, DataConfig(text="{text}", label="label", max_length=64))
    rows, held = reading.encoder(examples(problem)), None
    counting = reading.collator(model)
    if weights:
        held = class_weights([0.2, 0.05, 0.6], facts.targets, rows)
        counting = weighted(counting, held)
    start, theirs, split = deepcopy(model), deepcopy(model), deepcopy(model)
    mine = our_run(facts, rows, counting, model, tmp_path / "ours", ROWS, held)
    parts = our_run(facts, rows, counting, split, tmp_path / "split", ROWS // 2, held)
    lines = their_run(Weighted if weights else Trainer, rows, theirs, tokenizer, tmp_path / "trainer")
    assert len(mine) == len(lines) == STEPS
    for one, part, other in zip(mine, parts, lines, strict=True):
        for key in ("loss", "grad_norm"):
            assert one[key] == pytest.approx(float(other[key]), rel=2e-5, abs=2e-5), key
            assert part[key] == pytest.approx(one[key], rel=2e-5, abs=2e-5), key
    for found in (model, split):
        for key, weight in found.state_dict().items():
            assert (weight - theirs.state_dict()[key]).abs().max() <= 1e-5, key
    assert max((part - start.state_dict()[key]).abs().max() for key, part in model.state_dict().items()) > 1e-3


def test_weighted_labels_are_those_of_torch():
    logits = torch.tensor([[0.5, -1.0], [2.0, 0.1], [0.3, 0.3]])
    labels = torch.tensor([[1.0, 0.0], [0.0, 1.0], [float("nan")] * 2])
    weights = torch.tensor([3.0, 0.5])
    ours = class_losses(logits, labels, "multi_label", weights)
    assert ours[2] == 0
    assert ours.sum() / 2 == pytest.approx(
        float(torch.nn.BCEWithLogitsLoss(pos_weight=weights)(logits[:2], labels[:2]))
    )


def test_balanced_weights():
    """scikit-learn's compute_class_weight("balanced", ...): n / (classes * count)."""
    _, facts = facts_of("bert", "single_label")
    rows = [LabelledTokens(np.ones(1, np.int32), label) for label in (0, 0, 0, 1, 2, 2)]
    assert class_weights("balanced", facts.targets, rows).tolist() == pytest.approx([6 / 9, 6 / 3, 6 / 6])
    asked, several = facts_of("bert", "multi_label")
    encode = reading_of(several, load_tokenizer(asked, several.location), DataConfig(text="{text}", label="l")).encoder
    made = encode([("x", (1.0, 0.0, 1.0)), ("y", (1.0, 1.0, 0.0)), ("z", (0.0, 0.0, 0.0)), ("z", (0.0, 0.0, 0.0))])
    assert class_weights("balanced", several.targets, made).tolist() == pytest.approx([1, 3, 3])
