"""Rows of a mapped file give the batches that rows in memory gave: the same tokens, in the same order, each step."""

import json
from pathlib import Path

import numpy as np
import pytest

from scaleup.data.dataset import collator_for, load_training_data, train_loader
from scaleup.data.loader import Split
from scaleup.data.rows import Joined
from scaleup.data.tokenize import worker
from tests.unit.data.test_sources import encoder, sft, write
from tests.unit.data.whole_rows import batches

TWO = [{"path": "a.jsonl", "weight": 3}, {"path": "b.jsonl"}]
LENGTH = 24


def rows_in_memory(data, encode, source):
    """As every rank kept them."""
    lines = map(json.loads, Path(data.root, source.path).read_text().splitlines())
    make = encode.maker(source)
    made = encode([one for index, values in enumerate(lines) for one in make(values, index)])
    return [row for row in made if row is not None]


def as_lists(batch):
    return {name: value.tolist() for name, value in {**batch.inputs, "labels": batch.labels}.items()}


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    for name, count in (("a", 31), ("b", 13)):
        texts = ["word " * int(rng.integers(1, 12)) for _ in range(count)]
        write(tmp_path / f"{name}.jsonl", [{"p": f"{name} {at} {text}", "c": " yes"} for at, text in enumerate(texts)])
    return tmp_path


@pytest.mark.parametrize("train", ["a.jsonl", TWO], ids=["one", "mixture"])
@pytest.mark.parametrize(
    ("how", "keys", "train_keys"),
    [
        (None, {}, {}),
        (None, {"shuffle": False, "completion_only_loss": False}, {}),
        ("packs", {"packing": True}, {}),
        ("tokens", {}, {"tokens_per_device": 60}),
        ("length", {}, {"group_by_length": True}),
    ],
    ids=["plain", "in order", "packing", "by tokens", "by length"],
)
def test_batches_are_those_of_rows_in_memory(folder, train, how, keys, train_keys):
    steps = {"num_train_epochs": 2.3, **train_keys}
    config = sft(folder, steps, train=train, max_length=LENGTH, too_long="drop", **keys)
    encode = encoder(config.data)
    data = load_training_data(config, encode)
    sources = [rows_in_memory(config.data, encode, source) for source in config.data.train]
    weights = [source.weight for source in config.data.train]
    assert 0 < data.num_dropped == (44 if len(weights) == 2 else 31) - sum(map(len, sources))
    total = -(-23 * sum(map(len, sources)) // 10)
    collate = collator_for("causal_lm", 0, None, packing=how == "packs")
    micro, budget = (1, 60) if how == "tokens" else (3, LENGTH)
    for rank in range(2):
        split = Split(micro, 2, rank, 2)
        loader, num_steps = train_loader(config, data, collate, split)
        for step in (*range(num_steps), num_steps // 2, num_steps - 1, 0):  # and as a run that goes on asks
            expected = batches(sources, weights, split, step, total, config.data.shuffle, how=how, budget=budget)
            found = loader.batches(step)
            assert [as_lists(batch) for batch in found] == [as_lists(collate(rows)) for rows in expected], step


def test_held_out_rows_are_not_trained_on(folder):
    config = sft(folder, {"max_steps": 1}, train=TWO, validation_fraction=0.2)
    data = load_training_data(config, encoder(config.data))
    names = [tuple(row.input_ids) for row in Joined([*(source.rows for source in data.sources), data.validation])]
    assert len(names) == len(set(names)) == 44 and len(data.validation) == 6 + 3


def test_a_part_counts_what_is_left_out(folder):
    config = sft(folder, {"max_steps": 1}, train="a.jsonl", max_length=LENGTH, too_long="drop")
    source = config.data.train[0]
    rows = [(0, "a:1", {"p": "x " * 40, "c": "y"}), (1, "a:2", {"p": "x", "c": "y"})]
    part = worker((encoder(config.data), source))(rows)
    assert (part.num_read, part.num_rows, dict(part.left_out)) == (2, 1, {"too_long": 1})
