"""The divergences and their gradients, over all tokens or over the k likeliest and the tail: closed forms, autograd,
and what must hold whatever k and the chunks."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from scaleup.data.collate import Places, TopK
from scaleup.data.tokenization import IGNORE
from scaleup.distill.divergence import SoftAndHard, divergence_, top_k_divergence_, top_k_of
from scaleup.distill.heads import DistillTargets, StudentHead, logits_loss
from scaleup.models.heads import HiddenHead, told
from scaleup.train import head_loss
from scaleup.train.head_loss import linear_loss_sum

LN2 = math.log(2)
BETAS = (0.0, 0.3, 1.0)
ROWS, SIZE = 23, 40


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
    """Two heads over one vocabulary, of widths 12 and 7, and 23 positions of which 19 have a label. `sizes`: with
    padding."""

    def __init__(self, bias: bool = False, sizes: tuple[int, int] = (50, 50)) -> None:
        torch.manual_seed(3)
        self.student, self.teacher = (torch.nn.Linear(*of, bias=bias) for of in zip((12, 7), sizes, strict=True))
        self.teacher.requires_grad_(False)
        self.hidden, self.taught = torch.randn(23, 12, requires_grad=True), torch.randn(23, 7)
        self.labels = torch.randint(50, (23,))
        self.chosen = torch.arange(23) % 6 != 4

    def fused(self, loss: SoftAndHard, chosen: torch.Tensor | None = None) -> list[torch.Tensor]:
        """The loss, and the gradients by hidden states, weight and bias."""
        chosen = self.chosen if chosen is None else chosen
        self.student.__class__, self.teacher.__class__ = StudentHead, HiddenHead
        assert isinstance(self.student, StudentHead) and isinstance(self.teacher, HiddenHead)
        targets = DistillTargets(places_of(chosen), self.labels[chosen], loss, self.teacher, self.taught[chosen])
        with told(targets, self.student):
            return self._with_gradients(self.student(self.hidden))

    def naive(self, loss: SoftAndHard) -> list[torch.Tensor]:
        """In float64: quotients of small probabilities round."""
        logits = self.student(self.hidden)[self.chosen].double()
        teacher = self.teacher(self.taught)[self.chosen].double()
        cut = (logits[:, : loss.num_ids], teacher[:, : loss.num_ids])
        soft = plainly(*cut, loss.beta, loss.temperature) * loss.temperature**2
        hard = F.cross_entropy(logits, self.labels[self.chosen], reduction="sum")
        return self._with_gradients(loss.alpha * soft + (1 - loss.alpha) * hard)

    def _with_gradients(self, total: torch.Tensor) -> list[torch.Tensor]:
        parts = [self.hidden, *self.student.parameters()]
        for part in parts:
            part.grad = None
        (total / 7).backward()
        return [total.detach(), *(part.grad for part in parts if part.grad is not None)]


PADDED = pytest.mark.parametrize("sizes", [(50, 50), (50, 61), (64, 50), (64, 61)], ids=str)
"""Embeddings of student and teacher, for a tokenizer of 50 ids: those beyond are no part of the divergence, which is
that of both logits without them; the labels' part is of all, as in plain fine-tuning."""


@PADDED
@pytest.mark.parametrize("beta", BETAS)
@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
@pytest.mark.parametrize(("bias", "chunk"), [(False, 7), (True, 1), (True, 7), (True, 23)])
def test_fused_is_naive(
    beta: float, alpha: float, bias: bool, chunk: int, sizes: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(head_loss, "LOGITS_CHUNK", chunk)
    pair, loss = Pair(bias, sizes), SoftAndHard(beta, 2.0, alpha, None if sizes == (50, 50) else 50)
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
        with told(DistillTargets(places_of(pair.chosen), labels, loss, pair.teacher, taught), pair.student):
            assert not pair.student(pair.hidden).requires_grad


def places_of(chosen: torch.Tensor) -> Places:
    """Where a mask is true."""
    return Places.of(torch.where(chosen, 0, IGNORE))


def drawn() -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of a student and of its teacher."""
    torch.manual_seed(0)
    return torch.randn(ROWS, SIZE) * 2, torch.randn(ROWS, SIZE) * 2


def top_k_plainly(student: torch.Tensor, teacher: torch.Tensor, k: int, temperature: float) -> torch.Tensor:
    """From the definition of the divergence over k tokens and the tail, in float64."""
    q, p = (part.double().div(temperature).softmax(dim=1) for part in (student, teacher))
    p_kept, ids = p.topk(k, dim=1)
    q_kept = q.gather(1, ids)
    p_tail, q_tail = (1 - part.sum(dim=1) for part in (p_kept, q_kept))
    return (p_kept * (p_kept / q_kept).log()).sum() + (p_tail * (p_tail / q_tail).log()).sum()


def test_top_k_in_closed_form() -> None:
    """p = (0.5, 0.3, 0.2), of which the first is kept, and q = (0.25, 0.25, 0.5)."""
    teacher = top_k_of(torch.tensor([[0.5, 0.3, 0.2]]).log(), 1)
    assert teacher.ids.tolist() == [[0]]
    assert teacher.log_probs.exp()[0].tolist() == pytest.approx([0.5, 0.5])
    logits = torch.tensor([[0.25, 0.25, 0.5]]).log()
    value = top_k_divergence_(logits, teacher).item()
    assert value == pytest.approx(0.5 * math.log(2) + 0.5 * math.log(2 / 3), abs=1e-6)
    assert logits[0].tolist() == pytest.approx([-0.25, 0.25 / 3, 0.5 / 3], abs=1e-6)


@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("k", [1, 7, SIZE - 1])
def test_gradients_of_top_k_are_those_of_the_definition(k: int, temperature: float) -> None:
    student, teacher = drawn()
    logits = student.clone()
    student = student.double().requires_grad_()
    wanted = top_k_plainly(student, teacher, k, temperature)
    wanted.backward()
    assert student.grad is not None
    value = top_k_divergence_(logits, top_k_of(teacher.clone(), k, temperature), temperature)
    assert value.item() == pytest.approx(wanted.item(), rel=1e-6)
    assert (logits - student.grad).abs().max() < 1e-6


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_top_k_of_all_tokens_is_the_forward_kl(temperature: float) -> None:
    student, teacher = drawn()
    known, plain = student.clone(), student.clone()
    one = top_k_divergence_(known, top_k_of(teacher.clone(), SIZE, temperature), temperature)
    other = divergence_(plain, teacher.clone(), 0.0, temperature)
    assert one.item() == pytest.approx(other.item(), rel=1e-6)
    assert (known - plain).abs().max() < 1e-6


def test_more_tokens_tell_more_and_never_too_much() -> None:
    student, teacher = drawn()
    whole = divergence_(student.clone(), teacher.clone(), 0.0).item()
    parts = [top_k_divergence_(student.clone(), top_k_of(teacher.clone(), k)).item() for k in (1, 5, 20, SIZE)]
    assert parts == sorted(parts) and 0 < parts[0] < parts[2] < whole
    same = teacher.clone()
    assert abs(top_k_divergence_(same, top_k_of(teacher.clone(), 5)).item()) < 1e-5, "the teacher has nothing to learn"
    assert same.abs().max() < 1e-6, "so the tail's tokens are left as they are"


def test_a_tail_of_nothing() -> None:
    """Float32 has no such probability: neither the teacher's nor the student's is made by subtraction from 1."""
    teacher = top_k_of(torch.tensor([[500.0, 0.0, 0.0, 0.0]]), 1)
    assert teacher.log_probs[0].tolist() == pytest.approx([0.0, math.log(3) - 500])
    logits = torch.tensor([[0.0, 0.0, 0.0, 0.0]])
    assert top_k_divergence_(logits, teacher).item() == pytest.approx(math.log(4))
    assert logits[0].tolist() == pytest.approx([-0.75, 0.25, 0.25, 0.25])
    logits = torch.tensor([[60.0, 0.0, 1.0, 2.0]])
    half = TopK(torch.tensor([[0]]), torch.tensor([[0.5, 0.5]]).log())
    log_tail = torch.tensor([0.0, 1.0, 2.0]).logsumexp(0).item() - 60
    wanted = 0.5 * math.log(0.5) + 0.5 * (math.log(0.5) - log_tail)
    assert top_k_divergence_(logits, half).item() == pytest.approx(wanted, rel=1e-6)
    shares = torch.tensor([0.0, 1.0, 2.0]).softmax(0)
    assert logits[0].tolist() == pytest.approx([0.5, *(-0.5 * shares).tolist()], abs=1e-6)


@pytest.mark.parametrize("chunk", [1, 7, ROWS])
@pytest.mark.parametrize("alpha", [0.3, 1.0])
@pytest.mark.parametrize("padding", [0, 9])
def test_fused_top_k_is_naive_whatever_the_chunks(
    alpha: float, chunk: int, padding: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(head_loss, "LOGITS_CHUNK", chunk)
    torch.manual_seed(1)
    head, hidden = torch.nn.Linear(12, SIZE + padding), torch.randn(ROWS, 12, requires_grad=True)
    labels, chosen, teacher = torch.randint(SIZE, (ROWS,)), torch.arange(ROWS) % 6 != 4, drawn()[1]
    teacher, loss = teacher[chosen], SoftAndHard(0.0, 2.0, alpha, SIZE if padding else None)
    parts = (hidden, head.weight, head.bias)
    logits = head(hidden)[chosen]
    hard = F.cross_entropy(logits.double(), labels[chosen], reduction="sum")
    wanted = alpha * 4 * top_k_plainly(logits[:, :SIZE], teacher, 5, 2.0) + (1 - alpha) * hard
    gradients = torch.autograd.grad(wanted, parts)
    taught = top_k_of(teacher.clone(), 5, 2.0)
    from_logits = logits_loss(head(hidden)[chosen], taught, labels[chosen], loss)
    head.__class__ = StudentHead
    assert isinstance(head, StudentHead)
    with told(DistillTargets(places_of(chosen), labels[chosen], loss, top_k=taught), head):
        fused = head(hidden)
    for found in (fused, from_logits):
        assert found.item() == pytest.approx(wanted.item(), rel=1e-6)
        for one, other in zip(torch.autograd.grad(found, parts), gradients, strict=True):
            assert (one - other).abs().max() < 2e-6 * max(1.0, float(other.abs().max()))


def test_top_k_without_labels_is_no_loss() -> None:
    logits = torch.empty(0, SIZE)
    assert top_k_divergence_(logits, TopK(torch.empty(0, 3, dtype=torch.int32), torch.empty(0, 4))).item() == 0
