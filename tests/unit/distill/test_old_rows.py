"""A model that learns new rows and keeps what it said of old ones."""

import pytest
import torch
import torch.nn.functional as F

from scaleup.data.collate import Batch, WeighedBatch
from scaleup.distill.old_rows import OldBesideNew, WithOldSelf, loss_beside_old_self
from scaleup.train.losses import token_loss_sum
from scaleup.train.tally import Tally
from tests.unit.data import tiny


@pytest.fixture
def both():
    """A model that has moved away from its copy."""
    model, before = tiny.model("llama"), tiny.model("llama")
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return WithOldSelf(model, before).train()


@pytest.fixture
def batch():
    return tiny.collator("llama", tiny.model("llama"))(tiny.encode("llama"))


def log_probs(model, batch):
    logits = model(**batch.inputs).logits
    return batch.places.select(logits).log_softmax(dim=-1)


def test_old_rows_cost_the_divergence_from_the_copy(both, batch):
    """sum_v p log(p / q) of the copy's p and the model's q, over labelled tokens, with its gradient."""
    tally = Tally()
    objective = loss_beside_old_self(tally)
    loss = objective(both, WeighedBatch(batch, weight=0.25))
    loss.backward()
    found = {name: p.grad.clone() for name, p in both.student.named_parameters()}
    both.zero_grad()

    model, before = tiny.model("llama"), tiny.model("llama")
    model.load_state_dict(both.student.state_dict())
    with torch.no_grad():
        p = log_probs(before, batch)
    expected = F.kl_div(log_probs(model, batch), p, reduction="sum", log_target=True)
    (0.25 * expected).backward()
    assert expected > 0.1
    assert loss.item() == pytest.approx(0.25 * expected.item(), rel=1e-5)
    assert tally.sums["regularization/kl"].item() == pytest.approx(expected.item(), rel=1e-5)
    assert tally.counts["regularization/kl"] == batch.num_labels
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad, rtol=1e-4, atol=1e-6)
    assert all(p.grad is None for p in both.teacher.parameters())


def test_new_rows_cost_their_cross_entropy(both, batch):
    tally, alone = Tally(), tiny.model("llama")
    alone.load_state_dict(both.student.state_dict())
    loss = loss_beside_old_self(tally)(both, batch)
    assert loss.item() == pytest.approx(token_loss_sum(alone, batch).item(), rel=1e-6)
    assert not tally.sums


def test_a_model_that_has_not_moved_pays_nothing(batch):
    both = WithOldSelf(tiny.model("llama"), tiny.model("llama"))
    assert loss_beside_old_self(Tally())(both, WeighedBatch(batch, 1.0)).item() == pytest.approx(0.0, abs=1e-5)


class Given:
    """Gives batches of so many labels, which say of which step they are."""

    def __init__(self, *labels):
        self.labels = labels

    def batches(self, step):
        return [Batch({"step": step}, torch.zeros(1), count, 10) for count in self.labels]


def test_each_micro_batch_of_new_rows_has_old_ones_behind_it(runtime):
    """The step's loss is divided by its 10 new labels: an old token's 0.5 x 10 / 4 makes 0.5 x the mean over all 4."""
    loader = OldBesideNew(runtime, Given(4, 6), Given(3, 1), weight=0.5)
    first, old, second, other = loader.batches(7)
    assert [batch.num_labels for batch in (first, old, second, other)] == [4, 0.0, 6, 0.0]
    assert [each.rows.num_labels for each in (old, other)] == [3, 1]
    assert old.weight == other.weight == 0.5 * 10 / 4
    assert first.inputs == old.rows.inputs == {"step": 7}
