"""Rows -> tokens -> batches, for each kind of model."""

from __future__ import annotations

import pytest

from scaleup.config.data import DataConfig, SourceConfig
from scaleup.train.reading import reading_of
from tests.unit.data import tiny

SOURCE = SourceConfig(path="rows.jsonl")
ROW = {"text": "a film", "kind": "positive"}


def test_a_classifier_s_batch_has_a_class_a_row() -> None:
    data = DataConfig(text="{text}", label="kind", max_length=16)
    reading = reading_of(tiny.facts("bert-classifier"), tiny.tokenizer("bert-classifier"), data)
    rows = reading.encoder(reading.encoder.maker(SOURCE)(ROW, 0) + reading.encoder.maker(SOURCE)(ROW | {"kind": 0}, 1))
    batch = reading.collator(tiny.model("bert-classifier"))([row for row in rows if row is not None])
    assert batch.labels.tolist() == [1, 0] and batch.num_labels == 2


def test_a_new_head_has_the_labels_it_is_to_have() -> None:
    facts = tiny.facts("bert-classifier").model_copy(update={"labels": (), "new_labels": ("positive", "negative")})
    reading = reading_of(facts, tiny.tokenizer("bert-classifier"), DataConfig(text="{text}", label="kind"))
    [row] = reading.encoder(reading.encoder.maker(SOURCE)(ROW, 0))
    assert row is not None and row.label == 0


@pytest.mark.parametrize("name", ["llama", "t5"])
def test_a_language_model_s_batch_has_labels_at_positions(name: str) -> None:
    data = DataConfig(prompt="{text}", completion=" {kind}", max_length=64)
    reading = reading_of(tiny.facts(name), tiny.tokenizer(name), data)
    rows = [row for row in reading.encoder(reading.encoder.maker(SOURCE)(ROW, 0)) if row is not None]
    batch = reading.collator(tiny.model(name))(rows)
    assert batch.labels.shape[0] == 1 and batch.labels.shape[1] > 1
    assert ("decoder_input_ids" in batch.inputs) == (name == "t5")


def test_rows_are_packed_only_where_that_is_asked_for() -> None:
    data = DataConfig(text="{text}", max_length=64, packing=True)
    for packing in (False, True):
        reading = reading_of(tiny.facts("llama"), tiny.tokenizer("llama"), data, packing)
        rows = [each for each in reading.encoder(reading.encoder.maker(SOURCE)({"text": "a film"}, 0)) if each]
        assert ("position_ids" in reading.collator(tiny.model("llama"))(rows).inputs) == packing
