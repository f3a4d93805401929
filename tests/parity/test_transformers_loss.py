"""Our loss is Transformers' own, and so are its gradients, whatever is padded with what."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM, MixtralConfig, Qwen3MoeConfig

from scaleup.data.collate import Batch
from scaleup.data.tokenization import FILLER, IGNORE
from scaleup.models.load import enable_gradient_checkpointing
from scaleup.train.head_loss import fuse_head
from scaleup.train.losses import token_loss_sum
from tests.unit.data import tiny

SHAPE: dict[str, Any] = {
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
}
CASES = [(name, only) for name in tiny.CAUSAL for only in (True, False)] + [(name, True) for name in tiny.SEQ2SEQ]


def gradients(model):
    found = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    return found


def largest_difference(one, other):
    assert one.keys() == other.keys()
    return max((one[name] - other[name]).abs().max().item() for name in one)


def padded(rows, value, width):
    return torch.tensor([[*row.tolist(), *[value] * (width - len(row))] for row in rows])


def our_loss(model, batch):
    loss = token_loss_sum(model, batch) / batch.num_labels
    loss.backward()
    return loss.item(), gradients(model)


def their_loss(model, rows, batch):
    """Labels as Transformers wants them: not shifted; the model does that, and makes the decoder's inputs."""
    labels = padded([row.labels for row in rows], IGNORE, max(len(row.labels) for row in rows))
    inputs = {"input_ids": batch.inputs["input_ids"], "attention_mask": batch.inputs["attention_mask"]}
    loss = model(**inputs, labels=labels).loss
    loss.backward()
    return loss.item(), gradients(model)


@pytest.mark.parametrize(("name", "completion_only"), CASES)
def test_loss_and_gradients(name, completion_only):
    model, rows = tiny.model(name), tiny.encode(name, completion_only_loss=completion_only)
    batch = tiny.collator(name, model)(rows)
    assert len({len(row.input_ids) for row in rows}) > 3, "the rows have different lengths"

    (ours, our_gradients), (theirs, their_gradients) = our_loss(model, batch), their_loss(model, rows, batch)
    assert ours == pytest.approx(theirs, abs=1e-6)
    assert largest_difference(our_gradients, their_gradients) <= 1e-6
    assert max(gradient.abs().max() for gradient in our_gradients.values()) > 1e-2


@pytest.mark.parametrize("name", tiny.CAUSAL)
def test_the_prompts_make_a_difference(name):
    """The two settings above are not one and the same."""
    model = tiny.model(name)
    only, all_ = (tiny.collator(name, model)(tiny.encode(name, completion_only_loss=value)) for value in (True, False))
    assert only.num_labels < all_.num_labels
    assert our_loss(model, only)[0] != pytest.approx(our_loss(model, all_)[0], abs=1e-4)


@pytest.mark.parametrize("name", [*tiny.CAUSAL, *tiny.SEQ2SEQ])
def test_padding_with_eos(name):
    """A tokenizer whose pad is its eos: nothing changes, and the eos at the end of each row is learned."""
    model, rows = tiny.model(name), tiny.encode(name)
    eos = tiny.tokenizer(name).eos_token_id
    batch = tiny.collator(name, model, pad_is_eos=True)(rows)
    usual = tiny.collator(name, model)(rows)
    assert (batch.inputs["input_ids"] == eos).sum() > (usual.inputs["input_ids"] == eos).sum()
    assert (batch.labels == eos).sum() == len(rows)

    (ours, our_gradients), (plain, plain_gradients) = our_loss(model, batch), our_loss(model, usual)
    theirs, their_gradients = their_loss(model, rows, batch)
    assert ours == pytest.approx(theirs, abs=1e-6) and ours == pytest.approx(plain, abs=1e-6)
    assert largest_difference(our_gradients, their_gradients) <= 1e-6
    assert largest_difference(our_gradients, plain_gradients) <= 1e-6


@pytest.mark.parametrize("name", tiny.CAUSAL)
def test_logits_only_where_a_label_is(name):
    model = tiny.model(name)
    batch = tiny.collator(name, model)(tiny.encode(name))
    made = []
    hook = model.get_output_embeddings().register_forward_hook(lambda _, inputs, logits: made.append(logits.shape[1]))
    ours, our_gradients = our_loss(model, batch)
    hook.remove()

    logits = model(**batch.inputs).logits
    full = F.cross_entropy(logits.flatten(0, 1), batch.labels.flatten(), ignore_index=IGNORE)
    full.backward()
    assert ours == pytest.approx(full.item(), abs=1e-6)
    assert largest_difference(our_gradients, gradients(model)) <= 1e-6
    columns = (batch.labels != IGNORE).any(dim=0).sum().item()
    assert made == [columns] and columns < batch.labels.shape[1]


@pytest.mark.parametrize("name", [*tiny.CAUSAL, *tiny.SEQ2SEQ])
def test_neighbours_and_padding_do_not_matter(name):
    model, rows = tiny.model(name), tiny.encode(name)
    collate = tiny.collator(name, model)
    with torch.no_grad():
        alone = [token_loss_sum(model, collate([row])).item() for row in rows]
        for row, one in zip(rows, alone, strict=True):
            for neighbour, other in zip(rows, alone, strict=True):
                assert token_loss_sum(model, collate([row, neighbour])).item() == pytest.approx(one + other, rel=1e-6)
        assert token_loss_sum(model, collate(rows)).item() == pytest.approx(sum(alone), rel=1e-6)


@pytest.mark.parametrize("name", tiny.CAUSAL)
def test_padding_on_the_left(name):
    """Not what the collator does; with positions told, as generation tells them, it would be the same loss."""
    model, rows = tiny.model(name), tiny.encode(name)
    right = tiny.collator(name, model)(rows)
    width = right.labels.shape[1]
    moved = {key: torch.zeros_like(value) for key, value in right.inputs.items()}
    labels = torch.full_like(right.labels, IGNORE)
    for index, row in enumerate(rows):
        size = len(row.input_ids)
        for key, value in right.inputs.items():
            moved[key][index, width - size :] = value[index, :size]
        labels[index, width - size :] = right.labels[index, :size]
    moved["position_ids"] = (moved["attention_mask"].cumsum(1) - 1).clamp(min=0)
    left = Batch(moved, labels, right.num_labels, right.num_tokens)
    assert moved["attention_mask"][2, 0] == 0

    (ours, our_gradients), (shifted, shifted_gradients) = our_loss(model, right), our_loss(model, left)
    assert shifted == pytest.approx(ours, abs=1e-6)
    assert largest_difference(our_gradients, shifted_gradients) <= 1e-6


@pytest.mark.parametrize("name", [*tiny.CAUSAL, *tiny.SEQ2SEQ])
def test_fillers_are_worth_nothing(name):
    """A batch of fillers: no loss, and a gradient of exactly zero for every weight that a real batch gives one."""
    model, rows = tiny.model(name), tiny.encode(name)
    collate = tiny.collator(name, model)
    empty = collate([FILLER, FILLER])
    assert (empty.num_labels, empty.num_tokens) == (0, 0)
    loss = token_loss_sum(model, empty)
    assert loss.item() == 0.0
    loss.backward()
    assert all(gradient.count_nonzero() == 0 for gradient in gradients(model).values())

    with_one, without = our_loss(model, collate([*rows, FILLER])), our_loss(model, collate(rows))
    assert with_one[0] == pytest.approx(without[0], abs=1e-6)
    assert largest_difference(with_one[1], without[1]) <= 1e-6


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("kind", ["mixtral", "qwen3_moe"])
def test_a_mixture_of_experts_has_its_routers_loss(kind: str, fused: bool, checkpointing: bool) -> None:
    """Loss and gradients are Transformers' own with `output_router_logits`; an evaluation's is cross-entropy alone."""
    shape: dict[str, Any] = {**SHAPE, "num_experts_per_tok": 2, "router_aux_loss_coef": 0.3}
    if kind == "mixtral":
        config: Any = MixtralConfig(**shape, num_local_experts=4)
    else:
        config = Qwen3MoeConfig(**shape, num_experts=4, moe_intermediate_size=32, head_dim=8)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).train()
    rows = tiny.encode("llama", completion_only_loss=False)
    batch = tiny.collator("llama", model)(rows)
    assert batch.is_padded
    labels = batch.inputs["input_ids"].masked_fill(batch.inputs["attention_mask"] == 0, IGNORE)
    wanted = model(**batch.inputs, labels=labels, output_router_logits=True)
    wanted.loss.backward()
    gradients = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    if fused:
        fuse_head(model)
    if checkpointing:
        enable_gradient_checkpointing(model)
    loss = token_loss_sum(model, batch) / batch.num_labels
    loss.backward()
    assert loss.item() == pytest.approx(wanted.loss.item(), abs=1e-6)
    assert wanted.aux_loss.item() * 0.3 > 0.1
    for name, parameter in model.named_parameters():
        assert torch.allclose(parameter.grad, gradients[name], atol=1e-6), name
    plain = token_loss_sum(model.eval(), batch).item() / batch.num_labels
    assert plain == pytest.approx(wanted.loss.item() - 0.3 * wanted.aux_loss.item(), abs=1e-5)
