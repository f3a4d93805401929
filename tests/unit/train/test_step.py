"""One optimizer step, against its closed form."""

import math

import numpy as np
import pytest
import torch

from scaleup.data.collate import Batch
from scaleup.data.tokenization import FILLER, IGNORE
from scaleup.distributed.engines import NonFiniteError
from scaleup.train.losses import token_loss_sum
from scaleup.train.step import evaluate_loss, train_step
from tests.unit.data import tiny

RATE = 0.5


class Line(torch.nn.Module):
    """loss of a batch = sum over its labels y of w * y, so the gradient of w is the sum of its labels."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor([[2.0]]))


def loss_of(model, batch):
    return model.weight.sum() * batch.inputs["y"].sum()


def batch(*labels, num_tokens=0):
    return Batch({"y": torch.tensor(labels)}, torch.zeros(1), len(labels), num_tokens)


@pytest.fixture
def prepared(runtime):
    return runtime.prepare(model := Line(), torch.optim.SGD(model.parameters(), lr=RATE))


def step(runtime, prepared, batches, max_grad_norm=0.0, objective=loss_of):
    return train_step(runtime, *prepared, batches, objective, max_grad_norm)


SPLITS = [
    [[1.0, 2.0, 3.0, 6.0]],
    [[1.0, 2.0], [3.0, 6.0]],
    [[1.0], [2.0, 3.0, 6.0]],
    [[1.0], [2.0], [3.0], [6.0], []],
]


@pytest.mark.parametrize("split", SPLITS)
def test_the_loss_is_the_mean_over_all_labels_of_all_micro_batches(runtime, prepared, split):
    """Also of micro-batches with different numbers of labels, or none: mean 3, so w goes from 2 to 2 - 0.5 * 3."""
    model, _ = prepared
    result = step(runtime, prepared, [batch(*labels, num_tokens=5) for labels in split])
    assert result.loss == pytest.approx(6.0)
    assert result.grad_norm == pytest.approx(3.0)
    assert model.weight.item() == pytest.approx(0.5)
    assert result.num_tokens == 5 * len(split)
    assert not result.skipped and not result.stop_requested
    assert model.weight.grad is None or model.weight.grad.item() == 0.0, "nothing is left for the next step"


def test_steps_do_not_add_up(runtime, prepared):
    model, _ = prepared
    for _ in range(3):
        assert step(runtime, prepared, [batch(1.0)]).grad_norm == pytest.approx(1.0)
    assert model.weight.item() == pytest.approx(2.0 - 3 * RATE)


@pytest.mark.parametrize(("limit", "moved"), [(1.0, 1.0), (2.9, 2.9), (10.0, 3.0), (0.0, 3.0)])
def test_clipping(runtime, prepared, limit, moved):
    """The gradient is 3; 0 means no clipping; the norm told is the one before."""
    model, _ = prepared
    result = step(runtime, prepared, [batch(3.0)], max_grad_norm=limit)
    assert result.grad_norm == pytest.approx(3.0)
    assert model.weight.item() == pytest.approx(2.0 - RATE * moved, abs=1e-5)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("place", [0, 1])
def test_a_bad_loss_stops_before_the_weights_change(runtime, prepared, bad, place):
    model, _ = prepared
    batches = [batch(1.0), batch(1.0)]
    batches[place] = batch(bad)
    with pytest.raises(NonFiniteError, match="the loss is"):
        step(runtime, prepared, batches)
    assert model.weight.item() == 2.0


def test_a_bad_gradient_of_a_good_loss_stops_it_too(runtime, prepared):
    model, _ = prepared
    with pytest.raises(NonFiniteError, match="the gradient norm is"):
        step(runtime, prepared, [batch(1.0)], objective=lambda model, _: (model.weight - 2.0).sqrt().sum())
    assert model.weight.item() == 2.0


def test_a_step_without_labels_moves_nothing(runtime, prepared):
    model, _ = prepared
    result = step(runtime, prepared, [batch(), batch()])
    assert (result.loss, result.grad_norm, model.weight.item()) == (0.0, 0.0, 2.0)


def test_a_signal_is_reported(runtime, prepared):
    runtime.stop.requested = True
    assert step(runtime, prepared, [batch(1.0)]).stop_requested


@pytest.mark.parametrize("name", ["llama", "t5"])
@pytest.mark.parametrize("sizes", [[2, 3, 1], [2, 1, 1, 1], [1, 4]])
def test_a_real_model_steps_alike_however_the_batch_is_cut(runtime, name, sizes):
    def stepped(sizes):
        model = tiny.model(name)
        prepared = runtime.prepare(model, torch.optim.SGD(model.parameters(), lr=RATE))
        collate, rows = tiny.collator(name, model), iter([*tiny.encode(name), FILLER])
        batches = [collate([next(rows) for _ in range(size)]) for size in sizes]
        assert len(batches) == 1 or len({b.num_labels for b in batches}) > 1, "the parts weigh differently"
        result = step(runtime, prepared, batches, 1.0, token_loss_sum)
        return result, model.state_dict()

    (whole, weights), (cut, other) = stepped([5]), stepped(sizes)
    assert cut.loss == pytest.approx(whole.loss, abs=1e-5)
    assert cut.num_tokens == whole.num_tokens
    assert max((weights[key] - other[key]).abs().max().item() for key in weights) <= 1e-6


def test_evaluation(runtime):
    """The mean over all labels, not over batches; dropout off meanwhile and on again afterwards; nothing learned."""
    model, modes = Line(), []

    def objective(model, batch):
        modes.append(model.training)
        return loss_of(model, batch)

    model.train()
    loss = evaluate_loss(runtime, model, [batch(1.0, 2.0, 3.0), batch(6.0), batch()], objective)
    assert loss == pytest.approx(2.0 * 12.0 / 4)
    assert modes == [False] * 3 and model.training
    assert model.weight.grad is None


def test_evaluation_of_a_model_is_its_mean_loss_a_token(runtime):
    model, rows = tiny.model("llama"), tiny.encode("llama")
    collate = tiny.collator("llama", model)
    with torch.no_grad():
        sums = [token_loss_sum(model, collate([row])).item() for row in rows]
    expected = sum(sums) / sum(int((row.labels[1:] != IGNORE).sum()) for row in rows)
    batches = [collate(rows[:2]), collate(rows[2:]), collate([FILLER])]
    assert evaluate_loss(runtime, model, batches, token_loss_sum) == pytest.approx(expected, abs=1e-5)
    assert not np.isclose(expected, np.mean([sums[at] / rows[at].num_labels for at in range(len(rows))]), atol=1e-5)
