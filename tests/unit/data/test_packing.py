"""Rows packed into one sequence are worth exactly what they are worth apart."""

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from scaleup.data.collate import packed_collator
from scaleup.data.tokenization import FILLER, IGNORE, Tokens, join
from scaleup.plan.batches import PACKABLE
from scaleup.train.losses import token_loss_sum
from tests.unit.data import tiny

SMALL = {
    "vocab_size": 99,
    "hidden_size": 32,
    "n_embd": 32,
    "intermediate_size": 48,
    "n_inner": 48,
    "num_hidden_layers": 2,
    "n_layer": 2,
    "num_attention_heads": 4,
    "n_head": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "n_positions": 64,
    "sliding_window": 3,  # shorter than the rows: a window must not reach into the row before
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
NO_SDPA = {"gemma2"}


def row(*ids, labels=None):
    return Tokens(np.array(ids), np.array(labels or ids))


def loss_and_gradients(model, batch):
    loss = token_loss_sum(model, batch) / batch.num_labels
    loss.backward()
    gradients = {name: weight.grad.clone() for name, weight in model.named_parameters()}
    model.zero_grad()
    return loss.item(), gradients


def test_a_packed_sequence():
    packed = join([row(5, 6, 7), row(8, 9, labels=[IGNORE, 9]), row(3)])
    assert packed.input_ids.tolist() == [5, 6, 7, 8, 9, 3]
    assert packed.labels.tolist() == [IGNORE, 6, 7, IGNORE, 9, IGNORE], "nothing predicts a row's first token"
    assert packed.position_ids.tolist() == [0, 1, 2, 0, 1, 0]
    alone = row(1, 2)
    assert join([alone]) is alone and join([FILLER]) is FILLER


def test_collating():
    batch = packed_collator(7)([join([row(5, 6), row(8, 9)]), row(1, 2, 3), FILLER])
    assert batch.inputs["input_ids"].tolist() == [[5, 6, 8, 9], [1, 2, 3, 7], [0, 7, 7, 7]]
    assert batch.inputs["position_ids"].tolist() == [[0, 1, 0, 1], [0, 1, 2, 0], [0, 0, 0, 0]]
    i = IGNORE
    assert batch.labels.tolist() == [[6, i, 9, i], [2, 3, i, i], [i] * 4]
    assert (batch.num_labels, batch.num_tokens) == (4, 7)
    assert set(batch.inputs) == {"input_ids", "position_ids"}, "with a mask, positions would be no boundaries"


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("completion_only", [True, False])
@pytest.mark.parametrize("name", tiny.CAUSAL)
def test_loss_and_gradients(name, completion_only, attention):
    """One packed sequence full to the last token; two of unlike length, with a filler: as the rows by themselves."""
    model, rows = tiny.model(name), tiny.encode(name, completion_only_loss=completion_only)
    model.set_attn_implementation(attention)
    collate = tiny.collator(name, model)
    expected, gradients = loss_and_gradients(model, collate(rows))
    apart = [join(rows[:2]), join(rows[2:]), FILLER]
    assert len(apart[0].input_ids) != len(apart[1].input_ids)
    for sequences in ([join(rows)], apart, rows):
        batch = packed_collator(0)(sequences)
        loss, found = loss_and_gradients(model, batch)
        assert batch.num_labels == collate(rows).num_labels and batch.num_tokens == collate(rows).num_tokens
        assert loss == pytest.approx(expected, abs=1e-6)
        assert max((found[key] - gradients[key]).abs().max() for key in gradients) <= 1e-6


def apart_and_packed(kind, attention):
    """The largest difference of a logit between two rows by themselves and packed; and how much logits vary."""
    known = AutoConfig.for_model(kind)
    names = [name for name in SMALL if hasattr(known, name) or name in known.attribute_map]
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **{name: SMALL[name] for name in names})
    model = AutoModelForCausalLM.from_config(config, attn_implementation=attention).double().eval()
    first, second = torch.randint(3, 99, (1, 9)), torch.randint(3, 99, (1, 6))
    positions = torch.cat([torch.arange(9), torch.arange(6)])[None]
    with torch.no_grad():
        alone = torch.cat([model(ids, use_cache=False).logits for ids in (first, second)], dim=1)
        packed = model(torch.cat([first, second], dim=1), position_ids=positions, use_cache=False).logits
    return (alone - packed).abs().max().item(), alone.std().item()


@pytest.mark.parametrize("kind", sorted(PACKABLE))
def test_every_architecture_that_the_plan_lets_pack(kind):
    for attention in ("eager",) if kind in NO_SDPA else ("eager", "sdpa"):
        difference, spread = apart_and_packed(kind, attention)
        assert difference < 1e-10 < 1e-3 < spread


@pytest.mark.parametrize("kind", ["opt", "bloom", "mamba"])
def test_others_let_rows_see_each_other_without_a_word(kind):
    assert kind not in PACKABLE
    difference, _ = apart_and_packed(kind, "eager")
    assert difference > 1e-3
