"""A classifier taught by another: against naive arithmetic on the same logits."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModelForSequenceClassification

from scaleup.config.stages.distill import DistillSettings
from scaleup.data.collate import Places
from scaleup.data.tokenization import IGNORE
from scaleup.distill.classifiers import ClassifierDistillation
from scaleup.models.sources import materialize

T = 2.0
IDS = torch.tensor([[5, 6, 7, 8], [9, 10, 3, 3], [11, 3, 3, 3]])
MASK = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 0, 0, 0]])
LABELS = torch.tensor([1, 0, IGNORE])


@pytest.fixture(scope="module")
def teacher() -> Any:
    return AutoModelForSequenceClassification.from_pretrained(materialize("builtin:tiny-bert-classifier")).eval()


@pytest.fixture(scope="module")
def student(teacher: Any) -> Any:
    """The teacher with other weights."""
    torch.manual_seed(1)
    student = deepcopy(teacher)
    for weight in student.parameters():
        weight.data += 0.1 * torch.randn_like(weight)
    return student


def taught(student: Any, teacher: Any, **settings: Any) -> ClassifierDistillation:
    settings = {"temperature": T, **settings}
    made = ClassifierDistillation(deepcopy(student), teacher, DistillSettings.model_validate(settings))
    made.train()
    for module in made.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return made


def loss_of(model: ClassifierDistillation, rows: slice = slice(None), width: int = 4) -> torch.Tensor:
    labels, inputs = LABELS[rows], {"input_ids": IDS[rows, :width], "attention_mask": MASK[rows, :width]}
    result: torch.Tensor = model(labels=labels, places=Places.of(labels), **inputs)
    return result


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_loss_and_gradient_are_the_naive_ones(student: Any, teacher: Any, alpha: float) -> None:
    model = taught(student, teacher, alpha=alpha)
    loss = loss_of(model)
    loss.backward()
    plain = deepcopy(model.student)
    plain.zero_grad()
    logits = plain(input_ids=IDS, attention_mask=MASK).logits[:2]
    with torch.no_grad():
        target = teacher(input_ids=IDS, attention_mask=MASK).logits[:2]
    soft = F.kl_div((logits / T).log_softmax(-1), (target / T).log_softmax(-1), log_target=True, reduction="sum")
    naive = alpha * T**2 * soft + (1 - alpha) * F.cross_entropy(logits, LABELS[:2], reduction="sum")
    naive.backward()
    torch.testing.assert_close(loss, naive, rtol=1e-5, atol=1e-6)
    for (name, one), other in zip(model.student.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-4, atol=1e-6, msg=name)
    assert all(weight.grad is None for weight in model.teacher.parameters())


def test_a_row_counts_alike_in_every_batch(student: Any, teacher: Any) -> None:
    """Whatever stands beside it, and however wide the padding is; a filler counts as nothing."""
    model = taught(student, teacher, alpha=0.5, hidden={"loss": "mse"})
    together = loss_of(model)
    apart = loss_of(model, slice(0, 1)) + loss_of(model, slice(1, 2), width=2)
    torch.testing.assert_close(together, apart, rtol=1e-5, atol=1e-6)
    nothing = loss_of(model, slice(2, 3))
    assert nothing == 0
    nothing.backward()


@pytest.mark.parametrize("kind", ["cosine", "mse"])
def test_the_teacher_has_nothing_to_learn_from_itself(teacher: Any, kind: str) -> None:
    model = taught(teacher, teacher, alpha=1.0, hidden={"loss": kind, "weight": 3.0})
    assert loss_of(model).item() == pytest.approx(0, abs=1e-5)


def test_hidden_states_in_closed_form(student: Any, teacher: Any) -> None:
    """The mean over a row's tokens and over the layers, summed over rows."""
    model = taught(student, teacher, alpha=0.0, hidden={"loss": "cosine", "weight": 2.0})
    added = loss_of(model) - loss_of(taught(student, teacher, alpha=0.0))
    states = [
        each(input_ids=IDS, attention_mask=MASK, output_hidden_states=True).hidden_states[1:]
        for each in (model.student, teacher)
    ]
    expected = torch.stack(
        [
            sum((1 - F.cosine_similarity(one[row], other[row], dim=-1))[MASK[row].bool()].mean() for row in (0, 1))
            for one, other in zip(*states, strict=True)
        ]
    ).mean()
    torch.testing.assert_close(added, 2 * expected, rtol=1e-4, atol=1e-5)


def test_a_student_of_other_widths_has_projections(teacher: Any) -> None:
    config = deepcopy(teacher.config)
    config.hidden_size, config.num_attention_heads, config.intermediate_size = 16, 2, 32
    student = AutoModelForSequenceClassification.from_config(config)
    model = taught(student, teacher, alpha=0.5, hidden={"loss": "mse"})
    loss_of(model).backward()
    assert {tuple(made.weight.shape) for made in model.projections} == {(teacher.config.hidden_size, 16)}  # type: ignore[union-attr]
    assert all(made.weight.grad is not None for made in model.projections)  # type: ignore[union-attr]
