"""A teacher's k likeliest tokens and the tail: closed forms, autograd, and what must hold whatever k and the chunks."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from scaleup.data.collate import TopK
from scaleup.distill.divergence import SoftAndHard, divergence_, top_k_divergence_, top_k_of
from scaleup.distill.heads import DistillTargets, StudentHead, logits_loss
from scaleup.models.heads import told
from scaleup.train import head_loss

ROWS, SIZE = 23, 40


def drawn() -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of a student and of its teacher."""
    torch.manual_seed(0)
    return torch.randn(ROWS, SIZE) * 2, torch.randn(ROWS, SIZE) * 2


def plainly(student: torch.Tensor, teacher: torch.Tensor, k: int, temperature: float) -> torch.Tensor:
    """From the definition, in float64."""
    q, p = (part.double().div(temperature).softmax(dim=1) for part in (student, teacher))
    p_kept, ids = p.topk(k, dim=1)
    q_kept = q.gather(1, ids)
    p_tail, q_tail = (1 - part.sum(dim=1) for part in (p_kept, q_kept))
    return (p_kept * (p_kept / q_kept).log()).sum() + (p_tail * (p_tail / q_tail).log()).sum()


def test_closed_form() -> None:
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
def test_gradients_are_those_of_the_definition(k: int, temperature: float) -> None:
    student, teacher = drawn()
    logits = student.clone()
    student = student.double().requires_grad_()
    wanted = plainly(student, teacher, k, temperature)
    wanted.backward()
    assert student.grad is not None
    value = top_k_divergence_(logits, top_k_of(teacher.clone(), k, temperature), temperature)
    assert value.item() == pytest.approx(wanted.item(), rel=1e-6)
    assert (logits - student.grad).abs().max() < 1e-6


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_of_all_tokens_it_is_the_forward_kl(temperature: float) -> None:
    student, teacher = drawn()
    known, plain = student.clone(), student.clone()
    one = top_k_divergence_(known, top_k_of(teacher.clone(), SIZE, temperature), temperature)
    other = divergence_(plain, teacher.clone(), 0.0, temperature)
    assert one.item() == pytest.approx(other.item(), rel=1e-6)
    assert (known - plain).abs().max() < 1e-6


def test_more_tokens_tell_more_and_never_too_much() -> None:
    student, teacher = drawn()
    whole = divergence_(student.clone(), teacher.clone(), 0.0).item()
    found = [top_k_divergence_(student.clone(), top_k_of(teacher.clone(), k)).item() for k in (1, 5, 20, SIZE)]
    assert found == sorted(found) and 0 < found[0] < found[2] < whole
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
def test_fused_is_naive_whatever_the_chunks(alpha: float, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head_loss, "LOGITS_CHUNK", chunk)
    torch.manual_seed(1)
    head, hidden = torch.nn.Linear(12, SIZE), torch.randn(ROWS, 12, requires_grad=True)
    labels, chosen, teacher = torch.randint(SIZE, (ROWS,)), torch.arange(ROWS) % 6 != 4, drawn()[1]
    teacher, loss = teacher[chosen], SoftAndHard(0.0, 2.0, alpha)
    parts = (hidden, head.weight, head.bias)
    logits = head(hidden)[chosen]
    hard = F.cross_entropy(logits.double(), labels[chosen], reduction="sum")
    wanted = alpha * 4 * plainly(logits, teacher, 5, 2.0) + (1 - alpha) * hard
    gradients = torch.autograd.grad(wanted, parts)
    taught = top_k_of(teacher.clone(), 5, 2.0)
    from_logits = logits_loss(head(hidden)[chosen], taught, labels[chosen], loss)
    head.__class__ = StudentHead
    assert isinstance(head, StudentHead)
    with told(DistillTargets(chosen, labels[chosen], loss, top_k=taught), head):
        fused = head(hidden)
    for found in (fused, from_logits):
        assert found.item() == pytest.approx(wanted.item(), rel=1e-6)
        for one, other in zip(torch.autograd.grad(found, parts), gradients, strict=True):
            assert (one - other).abs().max() < 2e-6 * max(1.0, float(other.abs().max()))


def test_no_labels_are_no_loss() -> None:
    logits = torch.empty(0, SIZE)
    assert top_k_divergence_(logits, TopK(torch.empty(0, 3, dtype=torch.int32), torch.empty(0, 4))).item() == 0
