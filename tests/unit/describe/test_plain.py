"""Plain Transformers as an oracle: of tokens and labels, of a saved model's loss, and of answers beside padding."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scaleup.config.data import DataConfig
from scaleup.config.load import load_mapping
from scaleup.data.tokenization import Tokens
from scaleup.describe.plain import NotDue, Plain, differing_tokens, oracle_row, seq2seq_row
from scaleup.models.sources import materialize
from scaleup.records.chats import Chat
from scaleup.records.examples import PlainText, PromptCompletion
from tests.small_runs import SFT
from tests.unit.data.families import of_family

ROWS = [{"prompt": "ab" * number, "completion": " c" * number} for number in range(1, 8)]
DATA = DataConfig()
NO = -100


def plain(folder: Path, model: str = "tiny-llama", **changes: Any) -> Plain:
    """A run that has left the model as it is, of rows of different lengths."""
    run = folder / "run"
    shutil.copytree(materialize(f"builtin:{model}", "model.path"), run / "model")
    for name in ("rows", "held"):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    data = {**SFT["data"], "root": str(folder), "validation": "held.jsonl", **changes}
    config = load_mapping({**SFT, "name": "x", "data": data}).config
    assert config is not None
    return Plain(config, run)


@pytest.mark.parametrize("model", ["tiny-llama", "tiny-t5", "tiny-bart"])
def test_our_own_tokens_and_answers_are_the_plain_ones(tmp_path: Path, model: str) -> None:
    made = plain(tmp_path, model)
    assert made.labels() == 0 and made.padding() == 0
    assert 4 < made.loss() < 8, "that of random weights: log 259"


def test_without_rows_or_spans_nothing_is_due(tmp_path: Path) -> None:
    made = plain(tmp_path, validation=None)
    with pytest.raises(NotDue, match="no held-out rows"):
        made.loss()


def test_each_token_that_is_otherwise_counts() -> None:
    row = [1, 2, 3], [NO, 2, 3]
    tokens = lambda ids, labels: Tokens(np.asarray(ids, np.int32), np.asarray(labels, np.int32))  # noqa: E731
    assert differing_tokens(tokens(*row), row) == 0
    assert differing_tokens(tokens([1, 2, 3], [1, 2, 3]), row) == 1, "a prompt's token is learned"
    assert differing_tokens(tokens([1, 2, 3], [NO, 2, NO]), row) == 1, "the end is not"
    assert differing_tokens(tokens([1, 1, 2, 3], [NO, NO, 2, 3]), row) > 2, "two bos"


def test_a_completion_and_its_end_are_learned() -> None:
    tokenizer = of_family("byte-level")
    row = oracle_row(tokenizer, PromptCompletion("Name:", " cat"), DATA)
    assert row is not None
    ids, labels = row
    assert ids[0] == tokenizer.bos_token_id and ids.count(tokenizer.bos_token_id) == 1
    assert ids[-1] == labels[-1] == tokenizer.eos_token_id
    assert tokenizer.decode([label for label in labels[:-1] if label != NO]) == " cat"
    whole = oracle_row(tokenizer, PlainText("Name:"), DATA)
    assert whole is not None and whole[1][1:] == whole[0][1:]


def test_of_a_conversation_the_answers_are_learned() -> None:
    tokenizer = of_family("byte-level")
    chat = Chat([{"role": "user", "content": "Say hi."}, {"role": "assistant", "content": "hi"}])
    row = oracle_row(tokenizer, chat, DATA)
    assert row is not None
    assert tokenizer.decode([label for label in row[1] if label != NO]).startswith("hi")
    everything = oracle_row(tokenizer, chat, DATA.model_copy(update={"train_on": "all"}))
    assert everything is not None and everything[1] == everything[0]


def test_a_target_ends_once() -> None:
    tokenizer = of_family("byte-level")
    row = seq2seq_row(tokenizer, PromptCompletion("a", "b"), DATA)
    assert row is not None and row[1].count(tokenizer.eos_token_id) == 1
