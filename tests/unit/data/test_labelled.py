"""Texts with a class -> a classifier's batches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from scaleup.config.data import DataConfig, SourceConfig
from scaleup.data.labelled import LabelledEncoder, labelled_collator
from scaleup.data.tokenization import FILLER, IGNORE
from scaleup.errors import ScaleupError
from scaleup.records.labels import Targets

SOURCE = SourceConfig(path="rows.jsonl")


class Letters:
    """Reads a text's letters, at most four."""

    def ids(self, pairs: Sequence[tuple[str, str]]) -> list[list[int]]:
        return [[ord(letter) for letter in before + text] for before, text in pairs]

    def cut(self, ids: list[int]) -> list[int]:
        return ids[:4]


def encoder(**data: Any) -> LabelledEncoder:
    values = {"text": "{words}", "label": "kind", "max_length": 4, **data}
    return LabelledEncoder(Letters(), Targets(("bad", "good")), DataConfig.model_validate(values))


def test_rows() -> None:
    encode = encoder()
    make = encode.maker(SOURCE)
    examples = make({"words": "fine", "kind": "good"}, 0) + make({"words": "awful", "kind": 0}, 1)
    one, other = encode(examples)
    assert one is not None and other is not None
    assert (one.input_ids.tolist(), one.label) == ([ord(letter) for letter in "fine"], 1)
    assert (other.input_ids.tolist(), other.label) == ([ord(letter) for letter in "awfu"], 0)
    assert encoder(too_long="drop")(examples)[1] is None
    assert encode([]) == []


@pytest.mark.parametrize("label", ["Good", 2, -1])
def test_a_class_that_the_model_does_not_have(label: object) -> None:
    with pytest.raises(ScaleupError, match="is no class of the model -> use one of bad, good, or its number"):
        encoder().maker(SOURCE)({"words": "fine", "kind": label}, 0)


@pytest.mark.parametrize("row", [{"words": "fine"}, {"words": "fine", "kind": None}, {"words": "fine", "kind": 0.5}])
def test_a_row_without_a_class(row: dict[str, Any]) -> None:
    with pytest.raises(ScaleupError, match="kind"):
        encoder().maker(SOURCE)(row, 0)


def test_batches() -> None:
    encode = encoder()
    rows = encode([("ab", 1), ("abcd", 0)])
    batch = labelled_collator(0, 7)([row for row in rows if row is not None] + [FILLER])
    assert batch.inputs["input_ids"].tolist() == [[97, 98, 0, 0], [97, 98, 99, 100], [7, 0, 0, 0]]
    assert batch.inputs["attention_mask"].sum(dim=1).tolist() == [2, 4, 1]
    assert batch.labels.tolist() == [1, 0, IGNORE]
    assert (batch.num_labels, batch.num_tokens) == (2, 6)


def test_batches_of_several_labels() -> None:
    encode = encoder()
    encode = LabelledEncoder(encode.reader, Targets(("bad", "good"), "multi_label"), encode.data)
    make = encode.maker(SOURCE)
    rows = encode(make({"words": "ab", "kind": ["good", 0]}, 0) + make({"words": "c", "kind": "[]"}, 1))
    batch = labelled_collator(0, 7, 2)([*rows, FILLER])
    assert batch.labels[:2].tolist() == [[1, 1], [0, 0]]
    assert batch.labels[2].isnan().all()
    assert batch.num_labels == 2
    assert labelled_collator(0, 7, 2)([FILLER]).labels.shape == (1, 2)
