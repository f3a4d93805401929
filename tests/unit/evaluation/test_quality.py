"""Perplexity, divergence and agreement of a model beside its teacher: against closed forms."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from scaleup.data.collate import Batch
from scaleup.evaluation.quality import RowQuality, row_quality, summarize

CPU = torch.device("cpu")


class Fixed(torch.nn.Module):
    """Gives the same logits at every position."""

    def __init__(self, logits: list[float]) -> None:
        super().__init__()
        self.given = torch.tensor(logits)

    def forward(self, input_ids: torch.Tensor, **rest: Any) -> SimpleNamespace:
        return SimpleNamespace(logits=self.given.expand(*input_ids.shape, -1))


def batch(*labels: list[int]) -> Batch:
    found = torch.tensor(labels)
    return Batch({"input_ids": torch.zeros_like(found)}, found, int((found >= 0).sum()), found.numel())


BATCHES = [batch([0, 1, -100], [2, -100, -100]), batch([0, 0, 0])]


def test_divergence_loss_and_agreement_in_closed_form() -> None:
    teacher, model = Fixed([math.log(2), 0.0, 0.0]), Fixed([0.0, 0.0, 0.0])
    found = row_quality(model, teacher, BATCHES, CPU)
    assert found.num_labels.tolist() == [2, 1, 3]
    assert found.divergence / found.num_labels == pytest.approx([0.05889152] * 3, abs=1e-6)
    assert found.loss == pytest.approx(math.log(3) * found.num_labels)
    assert found.perplexity == pytest.approx(3)
    assert found.agreeing.tolist() == [2, 1, 3], "of equal logits the first is the likeliest, as for the teacher"
    other = row_quality(Fixed([0.0, 1.0, 0.0]), teacher, BATCHES, CPU)
    assert other.agreeing.sum() == 0


def test_padding_is_left_out_of_what_is_compared() -> None:
    """Not of the model's own loss: its users' softmax has it too."""
    teacher, model = Fixed([math.log(2), 0.0, 0.0, 9.0, 9.0]), Fixed([0.0, 0.0, 0.0, 0.0])
    found = row_quality(model, teacher, BATCHES, CPU, num_ids=3)
    assert found.divergence / found.num_labels == pytest.approx([0.05889152] * 3, abs=1e-6)
    assert found.agreeing.tolist() == [2, 1, 3]
    assert found.perplexity == pytest.approx(4)


def test_the_teacher_is_like_itself() -> None:
    teacher = Fixed([math.log(2), 0.0, 0.0])
    found = row_quality(teacher, teacher, BATCHES, CPU)
    said = summarize(found, found, 200)
    assert said["divergence"] == 0
    assert said["agreement"] == 1
    assert said["perplexity_ratio"] == 1
    assert said["perplexity_ratio_interval"] == [1, 1]
    assert (said["rows"], said["tokens"]) == (3, 6)


def test_intervals_hold_what_they_should() -> None:
    """The mean of 400 exponential draws, whose spread is known: 1 / sqrt(400) = 0.05."""
    losses = np.random.default_rng(1).exponential(size=400)
    ones = np.ones(400)
    found = RowQuality(ones, losses, ones, ones)
    low, high = np.log(summarize(found, found, 2000)["perplexity_interval"])
    assert low < losses.mean() < high
    assert (high - low) / (2 * 1.96) == pytest.approx(losses.std() / 20, rel=0.1)
    easier = RowQuality(ones, losses - 0.1, ones, ones)
    low, high = np.log(summarize(easier, found, 200)["perplexity_ratio_interval"])
    assert (low, high) == pytest.approx((-0.1, -0.1)), "the same rows are drawn for both"
