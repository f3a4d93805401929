"""This module swaps the heads of a student and its teacher for ones that compute the loss together, a few hundred
positions at a time.

The student's head calls the teacher's from inside its own forward, so that an engine that gathers a module's weights
before its forward has gathered both."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from scaleup.data.collate import Places, TopK
from scaleup.distill.divergence import SoftAndHard
from scaleup.models.heads import HiddenHead, ToldHead, has_plain_head, swap_head, told
from scaleup.train.head_loss import linear_gradients, needed, product_dtype, with_gradients

LossAndGradients = tuple[torch.Tensor, list[torch.Tensor | None]]


@dataclass(frozen=True)
class DistillTargets:
    """Holds what a student's head learns at N labelled positions of (B, S)."""

    places: Places
    """Says where these positions are."""
    labels: torch.Tensor
    """Holds their labels (N)."""
    loss: SoftAndHard
    teacher: HiddenHead | None = None
    """Is the teacher's head, where it is to compute logits; None where its top k are known or the labels are all there
    is."""
    hidden: torch.Tensor | None = None
    """Holds the teacher's last hidden states at these positions (N, H_t)."""
    top_k: TopK | None = None
    """Holds the teacher's likeliest tokens at these positions, where they are cached."""


class StudentHead(ToldHead):
    """Computes, told targets, the sum of the loss where a model expects logits."""

    def answer(self, hidden: torch.Tensor, targets: DistillTargets) -> torch.Tensor:
        """Returns the loss of hidden states (B, S, H), a float32 scalar."""
        hidden = targets.places.select(hidden)
        parts = (hidden, self.weight, self.bias)
        needs, dtype, head = needed(*parts), product_dtype(hidden), targets.teacher

        def loss_and_gradients(teacher_hidden: torch.Tensor | None) -> LossAndGradients:
            weight = None if head is None else head.weight.to(dtype)
            bias = None if head is None or head.bias is None else head.bias.to(dtype)

            def into_gradient(logits: torch.Tensor, rows: slice) -> torch.Tensor:
                teacher: torch.Tensor | TopK = logits  # not looked at where there is no teacher
                if targets.top_k is not None:
                    teacher = targets.top_k[rows]
                elif weight is not None and teacher_hidden is not None:
                    teacher = F.linear(teacher_hidden[rows].to(dtype), weight, bias).float()
                return targets.loss(logits, teacher, targets.labels[rows])

            return linear_gradients(*parts, into_gradient, needs)

        with torch.no_grad():
            if head is None or targets.hidden is None:
                total, grads = loss_and_gradients(None)
            else:
                # From within the teacher's own forward, for engines that gather a module's weights for that long.
                with told(loss_and_gradients, head):
                    total, grads = head(targets.hidden)
        return with_gradients(total, parts, grads)


def swap_heads(student: Any, teacher: Any) -> bool:
    """Lets both heads compute the loss together if both are plain; returns whether they are."""
    if not (has_plain_head(student) and has_plain_head(teacher)):
        return False
    swap_head(student.get_output_embeddings(), StudentHead)
    swap_head(teacher.get_output_embeddings(), HiddenHead)
    return True


def logits_loss(
    logits: torch.Tensor, teacher: torch.Tensor | TopK | None, labels: torch.Tensor, loss: SoftAndHard
) -> torch.Tensor:
    """Returns the same loss from logits (N, V), where heads are not plain, a float32 scalar.

    `teacher` is its logits (N, V) or its top k, None where only the labels (N) count."""
    student = logits.detach().to(torch.float32, copy=True)
    if isinstance(teacher, torch.Tensor):
        teacher = teacher.to(torch.float32, copy=True)
    total = loss(student, student if teacher is None else teacher, labels)
    return with_gradients(total, (logits,), (student.to(logits.dtype),))
