"""What logits are compared on, and how."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from scaleup.compress.probes import DRAWN_LENGTH, ROW_LENGTH, difference, drawn_probes, logits_on, row_probes
from scaleup.config.data import DataConfig
from scaleup.errors import ScaleupError
from tests.unit.data import tiny

CPU = torch.device("cpu")


@pytest.mark.parametrize("name", ["llama", "t5"])
def test_drawn_ids_are_the_vocabulary_s_and_the_same_each_time(name: str) -> None:
    facts = tiny.facts(name)
    drawn, again = drawn_probes(facts), drawn_probes(facts)
    ids = torch.cat([part[0] for probe in drawn for part in probe.values()])
    assert ids.min() >= 0 and facts.vocab_size * 0.8 < ids.max() < facts.vocab_size
    assert len(ids.unique()) > 80
    assert all(torch.equal(one[key], other[key]) for one, other in zip(drawn, again, strict=True) for key in one)
    assert ("decoder_input_ids" in drawn[0]) == (name == "t5")
    short = drawn_probes(facts.model_copy(update={"max_positions": 5}))
    assert [probe["input_ids"].shape[1] for probe in (drawn[0], short[0])] == [DRAWN_LENGTH, 5]


@pytest.mark.parametrize(("name", "pooling"), [("llama", "last"), ("t5", "eos"), ("bert-classifier", "whole")])
def test_a_classifier_s_ids_end_as_its_rows(name: str, pooling: str) -> None:
    """So that plain Transformers reads the score at the same place."""
    facts, tokenizer = tiny.facts(name), tiny.tokenizer(name)
    scored = facts.model_copy(update={"task": "sequence_classification", "pooling": pooling})
    probes = drawn_probes(scored, tokenizer)
    assert [list(probe) for probe in probes] == [["input_ids"]] * len(probes)
    rows = [probe["input_ids"][0].tolist() for probe in probes]
    assert all(0 < len(row) <= DRAWN_LENGTH for row in rows)
    if pooling != "whole":
        assert {row[-1] for row in rows} == {tokenizer.eos_token_id}
    if pooling == "eos":
        assert {row.count(tokenizer.eos_token_id) for row in rows} == {1}


@pytest.mark.parametrize("name", ["llama", "t5"])
def test_rows_are_those_of_the_data(name: str, tmp_path: Path) -> None:
    rows = [{"p": f"{number}:", "c": " " + "x" * number} for number in range(1, 99, 20)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = DataConfig.model_validate(
        {"root": str(tmp_path), "test": "rows.jsonl", "prompt": "{p}", "completion": "{c}"}
    )
    tokenizer = tiny.tokenizer(name)
    probes = row_probes(data, 4, tokenizer, tiny.facts(name))
    assert len(probes) == 4
    for probe, row in zip(probes, rows, strict=False):
        shown = "".join(tokenizer.decode(ids[0], skip_special_tokens=True) for ids in probe.values())
        assert (row["p"] + row["c"]).startswith(shown) and len(shown) >= min(ROW_LENGTH, len(row["c"]))
    assert row_probes(data, 0, tokenizer, tiny.facts(name)) == []
    assert row_probes(DataConfig(), 4, tokenizer, tiny.facts(name)) == []


def test_a_bad_row_is_named(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"p": "a", "c": "b"}\n{"p": null, "c": "b"}\n')
    data = DataConfig.model_validate(
        {"root": str(tmp_path), "test": "rows.jsonl", "prompt": "{p}", "completion": "{c}"}
    )
    with pytest.raises(ScaleupError, match=r"rows.jsonl:2: 'p' is null"):
        row_probes(data, 4, tiny.tokenizer("llama"), tiny.facts("llama"))


def test_a_difference_is_a_share_of_the_largest_logit() -> None:
    true = [torch.tensor([[1.0, -4.0]]), torch.tensor([[2.0, 0.0], [0.0, 1.0]])]
    assert difference(true, true) == 0
    moved = [true[0], true[1] + torch.tensor([[0.0, 0.0], [-0.5, 0.25]])]
    assert difference(moved, true) == 0.125
    broken = [true[0], true[1] * float("nan")]
    assert not difference(broken, true) <= 1.0, "not a number is not near anything"


def test_logits_are_whole_and_in_float32() -> None:
    facts, model = tiny.facts("t5"), tiny.model("t5").to(torch.bfloat16).train()
    found = logits_on(model, drawn_probes(facts), CPU)
    assert {tuple(part.shape) for part in found} == {(1, DRAWN_LENGTH, facts.vocab_size)}
    assert all(part.dtype == torch.float32 for part in found) and not model.training
