import pytest
import torch

from scaleup.rl.kl_control import adapted_kl_coef
from scaleup.rl.losses import LOG_RATIO_LIMIT, log_ratio, policy_loss, value_loss


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
    found, clipped = policy_loss(
        log_ratio(logprob, torch.zeros_like(logprob)).exp(), torch.tensor(advantage, dtype=torch.float64), 0.2
    )
    found.backward()
    assert logprob.grad is not None
    assert (found.item(), logprob.grad.item(), bool(clipped)) == (
        pytest.approx(loss),
        pytest.approx(gradient),
        is_clipped,
    )


@pytest.mark.parametrize(("given", "loss", "is_clipped"), [(2.0, 1.62, True), (1.0, 0.32, True), (0.0, 0.5, False)])
def test_the_clipped_value_loss(given: float, loss: float, is_clipped: bool) -> None:
    """Of a value that was 0 and is 1: it counts as 0.2 where that is the larger error."""
    found, clipped = value_loss(torch.tensor(1.0), torch.tensor(0.0), torch.tensor(given), 0.2)
    assert (float(found), bool(clipped)) == (pytest.approx(loss), is_clipped)


def test_a_ratio_stays_finite() -> None:
    far = log_ratio(torch.tensor([0.0, -1e4]), torch.tensor([-1e4, 0.0]))
    assert far.tolist() == [LOG_RATIO_LIMIT, -LOG_RATIO_LIMIT]
    assert far.exp().isfinite().all()


def test_the_kl_controller() -> None:
    assert adapted_kl_coef(0.15, 12.0, 6.0, 64, 10_000) == pytest.approx(0.15 * 1.00128)
    assert adapted_kl_coef(0.15, 0.0, 6.0, 64, 10_000) == pytest.approx(0.15 * (1 - 0.00128))
    assert adapted_kl_coef(0.15, 6.0, 6.0, 64, 10_000) == 0.15
    assert adapted_kl_coef(0.15, 6.6, 6.0, 100, 1000) == pytest.approx(0.15 * 1.01)
