"""Our divergence against TRL's: the loss of its GKD trainer, and the kernel of its distillation trainer."""

from __future__ import annotations

import pytest
import torch

from scaleup.distill.divergence import divergence_


@pytest.mark.parametrize("beta", [0.0, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_equal_to_generalized_jsd(beta: float, temperature: float) -> None:
    from trl.experimental.gkd import GKDTrainer

    torch.manual_seed(0)
    student, teacher = torch.randn(2, 9, 60, requires_grad=True), torch.randn(2, 9, 60)
    wanted = GKDTrainer.generalized_jsd_loss(student, teacher, None, beta, temperature, reduction="sum")
    wanted.backward()
    assert student.grad is not None
    logits = student.detach().flatten(0, 1).clone()
    found = divergence_(logits, teacher.flatten(0, 1).clone(), beta, temperature)
    assert found.item() == pytest.approx(wanted.item(), rel=1e-5)
    assert (logits - student.grad.flatten(0, 1)).abs().max() < 1e-6


@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
def test_equal_to_the_kernel(beta: float) -> None:
    from trl.kernels.chunked_divergence import ChunkedDivergenceFunction

    torch.manual_seed(0)
    student, teacher = torch.randn(11, 8), torch.randn(11, 6)
    weights = torch.randn(60, 8), torch.randn(60, 6)
    each, _ = ChunkedDivergenceFunction.apply(student, weights[0], None, teacher, weights[1], None, beta, 2.0)
    logits = student @ weights[0].T
    found = divergence_(logits, teacher @ weights[1].T, beta, 2.0)
    assert found.item() == pytest.approx(each.sum().item(), rel=1e-5)
