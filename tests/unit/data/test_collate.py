"""Token lists to batches."""

import numpy as np
import pytest
import torch

from scaleup.data.collate import causal_collator, seq2seq_collator
from scaleup.data.dataset import collator_for
from scaleup.data.tokenization import FILLER, IGNORE, Tokens
from tests.unit.data import tiny

PAD = 9
X = IGNORE


def row(ids, labels):
    return Tokens(np.asarray(ids, np.int32), np.asarray(labels, np.int32))


def test_causal_labels_stand_under_the_logits_that_predict_them():
    batch = causal_collator(PAD)([row([1, 2, 3, PAD], [X, X, 3, PAD]), row([4, 5], [4, 5])])
    assert batch.inputs["input_ids"].tolist() == [[1, 2, 3, PAD], [4, 5, PAD, PAD]]
    assert batch.inputs["attention_mask"].tolist() == [[1, 1, 1, 1], [1, 1, 0, 0]], "by position, not by token"
    assert batch.labels.tolist() == [[X, 3, PAD, X], [5, X, X, X]]
    assert batch.num_labels == 3, "nothing predicts a first token"
    assert batch.num_tokens == 6
    assert {tensor.dtype for tensor in (*batch.inputs.values(), batch.labels)} == {torch.int64}


def test_collating_leaves_the_rows_alone():
    one = row([1, 2, 3], [X, 2, 3])
    causal_collator(PAD)([one, row([1] * 5, [1] * 5)])
    assert one.input_ids.tolist() == [1, 2, 3] and one.labels.tolist() == [X, 2, 3]


def test_fillers_are_no_tokens():
    real = row([1, 2], [X, 2])
    batch = causal_collator(PAD)([real, FILLER])
    assert (batch.num_labels, batch.num_tokens) == (1, 2)
    assert batch.inputs["attention_mask"].sum(dim=1).min() == 1, "each row has something to attend to"
    assert (causal_collator(PAD)([FILLER]).num_labels, causal_collator(PAD)([FILLER]).num_tokens) == (0, 0)


def test_seq2seq_targets_go_in_as_they_come_out():
    batch = seq2seq_collator(PAD, lambda labels: labels + 1000)([row([1, 2, 3], [4, 5]), row([6], [7, 8, 2]), FILLER])
    assert batch.inputs["input_ids"].tolist() == [[1, 2, 3], [6, PAD, PAD], [0, PAD, PAD]]
    assert batch.inputs["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0], [1, 0, 0]]
    assert batch.labels.tolist() == [[4, 5, X], [7, 8, 2], [X, X, X]]
    assert torch.equal(batch.inputs["decoder_input_ids"], batch.labels + 1000)
    assert (batch.num_labels, batch.num_tokens) == (5, 4 + 5)


@pytest.mark.parametrize("name", tiny.SEQ2SEQ)
def test_decoder_inputs_are_shifted_by_the_model(name):
    model, rows = tiny.model(name), tiny.encode(name)
    batch = tiny.collator(name, model)(rows)
    start, pad = model.config.decoder_start_token_id, model.config.pad_token_id
    for inputs, tokens in zip(batch.inputs["decoder_input_ids"].tolist(), rows, strict=True):
        shifted = [start, *tokens.labels.tolist()[:-1]]
        assert inputs[: len(shifted)] == shifted
        assert X not in inputs
        assert inputs[len(shifted) + 1 :] == [pad] * (len(inputs) - len(shifted) - 1)


def test_the_task_chooses_the_collator():
    rows = [row([1, 2], [X, 2])]
    assert "decoder_input_ids" not in collator_for("causal_lm", PAD, None)(rows).inputs
    assert "decoder_input_ids" in collator_for("seq2seq_lm", PAD, lambda labels: labels)(rows).inputs


def test_moving_a_batch():
    batch = causal_collator(PAD)([row([1, 2], [X, 2])])
    moved = batch.to(torch.device("meta"))
    assert {tensor.device.type for tensor in (*moved.inputs.values(), moved.labels)} == {"meta"}
    assert (moved.num_labels, moved.num_tokens) == (batch.num_labels, batch.num_tokens)
