"""The divergences and their gradients: closed forms, autograd, and what must hold whatever the chunks."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from scaleup.distill.divergence import SoftAndHard, divergence_
from scaleup.distill.heads import DistillTargets, StudentHead
from scaleup.models.heads import HiddenHead, told
from scaleup.train import head_loss
from scaleup.train.head_loss import linear_loss_sum

LN2 = math.log(2)
BETAS = (0.0, 0.3, 1.0)


def divergence(teacher: list[float], student: list[float], beta: float, temperature: float = 1.0) -> tuple[float, list]:
    logits = torch.tensor([student], dtype=torch.float32)
    value = divergence_(logits, torch.tensor([teacher], dtype=torch.float32), beta, temperature)
    return value.item(), logits[0].tolist()


@pytest.mark.parametrize(("beta", "wanted"), [(0.0, 0.05889152), (1.0, 0.05663301), (0.5, 0.01436259)])
def test_closed_forms(beta: float, wanted: float) -> None:
    assert divergence([LN2, 0, 0], [0, 0, 0], beta)[0] == pytest.approx(wanted, abs=1e-7)


def test_closed_form_with_a_temperature() -> None:
    value, gradient = divergence([2 * LN2, 0, 0], [0, 0, 0], 0.0, 2.0)
    assert 4 * value == pytest.approx(0.23556607, abs=1e-6)
    assert [4 * part for part in gradient] == pytest.approx([-1 / 3, 1 / 6, 1 / 6], abs=1e-6)


def plainly(student: torch.Tensor, teacher: torch.Tensor, beta: float, temperature: float) -> torch.Tensor:
    """From the definitions."""
    q, p = (part / temperature for part in (student, teacher))
    q, p = q.softmax(dim=-1), p.softmax(dim=-1)
    if beta == 0:
        return (p * (p / q).log()).sum()
    if beta == 1:
        return (q * (q / p).log()).sum()
    m = beta * p + (1 - beta) * q
    return beta * (p * (p / m).log()).sum() + (1 - beta) * (q * (q / m).log()).sum()


@pytest.mark.parametrize("beta", BETAS)
@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_gradients_are_those_of_the_definitions(beta: float, temperature: float) -> None:
    torch.manual_seed(0)
    student, teacher = (torch.randn(6, 40, dtype=torch.float64) * 2 for _ in range(2))
    student.requires_grad_()
    wanted = plainly(student, teacher, beta, temperature)
    wanted.backward()
    assert student.grad is not None
    logits = student.detach().float()
    value = divergence_(logits, teacher.float(), beta, temperature)
    assert value.item() == pytest.approx(wanted.item(), rel=1e-6)
    assert (logits - student.grad).abs().max() < 1e-6


@pytest.mark.parametrize("beta", BETAS)
def test_equal_models_do_not_diverge(beta: float) -> None:
    logits = torch.randn(4, 30) * 5
    same = logits.clone()
    assert abs(divergence_(logits, same, beta).item()) < 1e-6
    assert logits.abs().max() < 1e-6


@pytest.mark.parametrize("beta", BETAS)
def test_what_one_model_deems_impossible_is_no_nan(beta: float) -> None:
    """Float32 has no such small probabilities, only their logarithms."""
    value, gradient = divergence([500.0, 0.0, 0.0], [0.0, 500.0, 0.0], beta)
    assert math.isfinite(value) and all(map(math.isfinite, gradient))


class Pair:
    """Two heads over one vocabulary, of widths 12 and 7, and 23 positions of which 19 have a label."""

    def __init__(self, bias: bool = False) -> None:
        torch.manual_seed(3)
        self.student, self.teacher = torch.nn.Linear(12, 50, bias=bias), torch.nn.Linear(7, 50, bias=bias)
        self.teacher.requires_grad_(False)
        self.hidden, self.taught = torch.randn(23, 12, requires_grad=True), torch.randn(23, 7)
        self.labels = torch.randint(50, (23,))
        self.chosen = torch.arange(23) % 6 != 4

    def fused(self, loss: SoftAndHard, chosen: torch.Tensor | None = None) -> list[torch.Tensor]:
        """The loss, and the gradients by hidden states, weight and bias."""
        chosen = self.chosen if chosen is None else chosen
        self.student.__class__, self.teacher.__class__ = StudentHead, HiddenHead
        assert isinstance(self.student, StudentHead) and isinstance(self.teacher, HiddenHead)
        targets = DistillTargets(chosen, self.labels[chosen], loss, self.teacher, self.taught[chosen])
        with told(targets, self.student):
            return self._with_gradients(self.student(self.hidden))

    def naive(self, loss: SoftAndHard) -> list[torch.Tensor]:
        """In float64: quotients of small probabilities round."""
        logits = self.student(self.hidden)[self.chosen].double()
        teacher = self.teacher(self.taught)[self.chosen].double()
        soft = plainly(logits, teacher, loss.beta, loss.temperature) * loss.temperature**2
        hard = F.cross_entropy(logits, self.labels[self.chosen], reduction="sum")
        return self._with_gradients(loss.alpha * soft + (1 - loss.alpha) * hard)

    def _with_gradients(self, total: torch.Tensor) -> list[torch.Tensor]:
        parts = [self.hidden, *self.student.parameters()]
        for part in parts:
            part.grad = None
        (total / 7).backward()
        return [total.detach(), *(part.grad for part in parts if part.grad is not None)]


@pytest.mark.parametrize("beta", BETAS)
@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("chunk", [1, 7, 23])
def test_fused_is_naive(beta: float, alpha: float, bias: bool, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head_loss, "LOGITS_CHUNK", chunk)
    pair, loss = Pair(bias), SoftAndHard(beta, 2.0, alpha)
    one, other = pair.naive(loss), pair.fused(loss)
    assert len(one) == len(other) == 3 + bias
    assert other[0].item() == pytest.approx(one[0].item(), abs=1e-6 * int(pair.chosen.sum()))
    for wanted, found in zip(one[1:], other[1:], strict=True):
        assert (wanted - found).abs().max() <= 2e-6 * max(1.0, float(wanted.abs().max()))


def test_alpha_0_is_cross_entropy_exactly() -> None:
    pair = Pair()
    found = pair.fused(SoftAndHard(0.5, 3.0, 0.0))
    hard = linear_loss_sum(pair.hidden[pair.chosen], pair.student.weight, None, pair.labels[pair.chosen])
    for one, other in zip(found, pair._with_gradients(hard), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_no_labels_are_no_loss(alpha: float) -> None:
    pair = Pair()
    total, *gradients = pair.fused(SoftAndHard(0.5, 1.0, alpha), chosen=torch.zeros(23, dtype=torch.bool))
    assert total.item() == 0.0
    assert len(gradients) == 2 and all(gradient.count_nonzero() == 0 for gradient in gradients)


def test_the_teacher_gets_no_gradient_and_frozen_parts_get_none() -> None:
    pair = Pair()
    pair.student.weight.requires_grad_(False)
    assert len(pair.fused(SoftAndHard(0.0, 1.0, 0.5))) == 2
    assert pair.teacher.weight.grad is None
    with torch.no_grad():
        labels, taught, loss = pair.labels[pair.chosen], pair.taught[pair.chosen], SoftAndHard(0, 1, 1)
        with told(DistillTargets(pair.chosen, labels, loss, pair.teacher, taught), pair.student):
            assert not pair.student(pair.hidden).requires_grad
