"""The losses of tokens that the algorithms share, against numbers worked out by hand."""

import pytest
import torch

from scaleup.rl.losses import (
    LOG_RATIO_LIMIT,
    level_ratio,
    log_ratio,
    of_high_entropy,
    policy_loss,
    token_weights,
    value_loss,
)


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "gradient", "is_clipped"),
    [
        (1.5, 1.0, -1.2, 0.0, True),
        (1.5, -1.0, 1.5, 1.5, False),
        (0.5, 1.0, -0.5, -0.5, False),
        (0.5, -1.0, 0.8, 0.0, True),
        (1.0, 2.0, -2.0, -2.0, False),
    ],
)
def test_the_clipped_surrogate(ratio: float, advantage: float, loss: float, gradient: float, is_clipped: bool) -> None:
    """The gradient is by the log-probability: ratio times that by the ratio."""
    logprob = torch.tensor(ratio, dtype=torch.float64).log().requires_grad_()
    losses, clipped = policy_loss(
        log_ratio(logprob, torch.zeros_like(logprob)).exp(), torch.tensor(advantage, dtype=torch.float64), (0.8, 1.2)
    )
    losses.backward()
    assert logprob.grad is not None
    assert (losses.item(), logprob.grad.item(), bool(clipped)) == (
        pytest.approx(loss),
        pytest.approx(gradient),
        is_clipped,
    )


@pytest.mark.parametrize(("target", "loss", "is_clipped"), [(2.0, 1.62, True), (1.0, 0.32, True), (0.0, 0.5, False)])
def test_the_clipped_value_loss(target: float, loss: float, is_clipped: bool) -> None:
    """Of a value that was 0 and is 1: it counts as 0.2 where that is the larger error."""
    losses, clipped = value_loss(torch.tensor(1.0), torch.tensor(0.0), torch.tensor(target), 0.2)
    assert (float(losses), bool(clipped)) == (pytest.approx(loss), is_clipped)


def test_a_ratio_stays_finite() -> None:
    far = log_ratio(torch.tensor([0.0, -1e4]), torch.tensor([-1e4, 0.0]))
    assert far.tolist() == [LOG_RATIO_LIMIT, -LOG_RATIO_LIMIT]
    assert far.exp().isfinite().all()


def test_bounds_may_differ() -> None:
    """DAPO's clip-higher; and the two-sided clipping of INTELLECT-2, which holds where the advantage is negative."""
    ratio, good, bad = torch.tensor([1.25, 1.5]), torch.ones(2), -torch.ones(2)
    losses, clipped = policy_loss(ratio, good, (0.8, 1.28))
    assert losses.tolist() == pytest.approx([-1.25, -1.28]) and clipped.tolist() == [False, True]
    assert policy_loss(torch.tensor([9.0]), bad[:1], (0.8, 1.28))[0].tolist() == [9.0]
    assert policy_loss(torch.tensor([9.0]), bad[:1], (0.8, 1.28), delta=4.0)[0].tolist() == [4.0]


def test_a_ratio_of_a_whole_response() -> None:
    log_ratios = torch.tensor([[0.3, -0.1, 7.0], [0.2, 0.4, 0.6]])
    mask = torch.tensor([[True, True, False], [True, True, True]])
    assert level_ratio(log_ratios, mask, "token") is log_ratios
    assert level_ratio(log_ratios, mask, "sequence").squeeze(1).tolist() == pytest.approx([0.1, 0.4])
    assert level_ratio(log_ratios, mask, "trajectory").squeeze(1).tolist() == pytest.approx([0.2, 1.2])


def test_what_losses_are_a_mean_of() -> None:
    mask = torch.tensor([[True, True, False, False], [True, True, True, True]])
    losses = torch.tensor([[1.0, 3.0, 99.0, 99.0], [4.0, 4.0, 4.0, 8.0]])

    def mean(loss_type: str) -> float:
        weights, counts = token_weights(mask, loss_type, max_new_tokens=10)  # type: ignore[arg-type]
        return float((losses * mask * (1 if weights is None else weights)).sum() / counts.sum())

    assert mean("token") == pytest.approx(24 / 6)
    assert mean("sequence") == pytest.approx((2 + 5) / 2)
    assert mean("constant") == pytest.approx(24 / 20)


def test_only_tokens_of_high_entropy_count() -> None:
    entropies = torch.tensor([[1.0, 2.0, 9.0], [4.0, 3.0, 5.0]])
    mask = torch.tensor([[True, True, False], [True, True, True]])
    assert of_high_entropy(entropies, mask, 0.4).tolist() == [[False, False, False], [True, False, True]]
    assert of_high_entropy(entropies, mask, 1.0).equal(mask)
    assert not of_high_entropy(entropies, torch.zeros_like(mask), 0.4).any()
