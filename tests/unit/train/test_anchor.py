"""What draws weights back to where they were, against the papers' formulas."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from scaleup.data.collate import causal_collator
from scaleup.data.tokenization import IGNORE, Tokens
from scaleup.errors import ScaleupError
from scaleup.train.anchor import Anchor, fisher_information
from scaleup.train.step import train_step
from tests.unit.train.test_step import batch

RATE, WEIGHT, START = 0.5, 3.0, torch.tensor([[2.0, -1.0]])


class Line(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(START.clone())
        self.frozen = torch.nn.Parameter(torch.ones(1), requires_grad=False)


def loss_of(model, batch):
    """Its gradient is the mean label, in each weight."""
    return model.weight.sum() * batch.inputs["y"].sum()


@pytest.fixture
def prepared(runtime):
    model = Line()
    return runtime.prepare(model, torch.optim.SGD([model.weight], lr=RATE))


@pytest.mark.parametrize("fisher", [None, torch.tensor([[0.5, 4.0]])], ids=["l2sp", "ewc"])
@pytest.mark.parametrize("split", [[[1.0, 3.0]], [[1.0], [3.0], []]], ids=["whole", "accumulated"])
def test_the_gradient_and_the_penalty(runtime, prepared, fisher, split):
    """w1 = w0 - lr g, w2 = w1 - lr (g + weight F (w1 - w0)), whatever the micro-batches."""
    model, optimizer = prepared
    known = None if fisher is None else {model.weight: fisher}
    anchor = Anchor.at(runtime, model, optimizer, WEIGHT, known)
    factor = torch.ones(1, 2) if fisher is None else fisher
    expected, gradient = START.clone(), torch.full((1, 2), 2.0)
    for _ in range(3):
        away = expected - START
        penalty = WEIGHT / 2 * (factor * away**2).sum()
        expected = expected - RATE * (gradient + WEIGHT * factor * away)
        train_step(runtime, model, optimizer, [batch(*labels) for labels in split], loss_of, 0.0)
        torch.testing.assert_close(model.weight.detach(), expected)
        assert anchor.measured()["regularization/penalty"] == pytest.approx(penalty.item())


def test_it_is_not_clipped(runtime, prepared):
    """As torch's weight_decay is not: the clipped gradient has norm 1, and the pull is added to that."""
    model, optimizer = prepared
    Anchor.at(runtime, model, optimizer, WEIGHT)
    step = torch.full((1, 2), 1.0) / 2**0.5
    expected = START.clone()
    for _ in range(2):
        expected = expected - RATE * (step + WEIGHT * (expected - START))
        train_step(runtime, model, optimizer, [batch(4.0)], loss_of, 1.0)
    torch.testing.assert_close(model.weight.detach(), expected)


class Softmax(torch.nn.Module):
    """A softmax regression of each label on its token, which drops all in training."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.weight = torch.nn.Parameter(torch.randn(4, 4))

    def forward(self, ids):
        return F.dropout(self.weight[ids], 1.0, self.training)


def nll(model, batch):
    logits = model(batch.inputs["input_ids"]).flatten(0, 1)
    return F.cross_entropy(logits, batch.labels.flatten(), ignore_index=IGNORE, reduction="sum")


ROWS = [
    Tokens(np.array(ids, np.int32), np.array(labels, np.int32))
    for ids, labels in [([0, 1, 1, 1], [IGNORE, 2, 3, 3]), ([2, 0], [IGNORE, 0]), ([1, 1, 3], [IGNORE, 1, 3])]
]


def test_the_fisher_information_of_a_softmax_regression(runtime):
    """The gradient of a row's log-likelihood by the weights of token i is the sum of onehot(label) - softmax(W_i) over
    the row's tokens i. Neither weights nor the optimizer's state move."""
    model = Softmax()
    model, optimizer = runtime.prepare(model, torch.optim.AdamW(model.parameters(), lr=1.0, weight_decay=0.5))
    before, collate = model.weight.detach().clone(), causal_collator(0)
    found = fisher_information(runtime, model, optimizer, ROWS, collate, nll)

    expected = torch.zeros(4, 4)
    for made in (collate([row]) for row in ROWS):
        gradient = torch.zeros(4, 4)
        for token, label in zip(made.inputs["input_ids"][0], made.labels[0], strict=True):
            if label != IGNORE:
                gradient[token] += F.one_hot(label, 4) - before[token].softmax(0)
        expected += gradient**2 / len(ROWS)
    torch.testing.assert_close(found[model.weight], expected)
    assert torch.equal(model.weight, before) and model.weight.grad is None
    assert not optimizer.optimizer.state and model.training


def test_a_row_without_a_gradient_is_named(runtime):
    model = Softmax()
    model, optimizer = runtime.prepare(model, torch.optim.SGD(model.parameters(), lr=1.0))

    def bad_second(model, batch):
        return nll(model, batch) * (float("nan") if batch.inputs["input_ids"][0, 0] == 2 else 1)

    with pytest.raises(ScaleupError, match=r"data.regularization: the gradient norm is nan of row 2"):
        fisher_information(runtime, model, optimizer, ROWS, causal_collator(0), bad_second)
