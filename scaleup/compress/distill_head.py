"""The heads of a student and its teacher, which give the loss together, a few hundred positions at a time.

As in `train/head_loss.py`, both keep their places, their parameters and their names. The student's calls the teacher's
from inside its own forward, so that an engine that gathers a module's weights before its forward has gathered both."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from scaleup.compress.divergence import SoftAndHard
from scaleup.data.collate import TopK
from scaleup.train.head_loss import linear_gradients, needed, product_dtype, returned_as_is, with_gradients

Gradients = tuple[torch.Tensor, list[torch.Tensor | None]]


class TeacherHead(nn.Linear):
    """A head that passes on the hidden states that it gets, or works on them while its weights are at hand."""

    work: Callable[[torch.Tensor], Gradients] | None = None

    def forward(self, hidden: torch.Tensor) -> Any:
        """Hidden states -> the same, or what `work` makes of them."""
        return hidden if self.work is None else self.work(hidden)

    def at_work(self, hidden: torch.Tensor, work: Callable[[torch.Tensor], Gradients]) -> Gradients:
        self.work = work
        try:
            found: Gradients = self(hidden)
        finally:
            self.work = None
        return found


@dataclass(frozen=True)
class Asked:
    """What a student's head is asked for: the loss of N labelled positions of (B, S)."""

    chosen: torch.Tensor
    """(B, S): which positions these are."""
    labels: torch.Tensor
    """(N)"""
    teacher: TeacherHead | None
    """None: the labels are all there is to learn from, or its opinion is known."""
    hidden: torch.Tensor | None
    """(N, H_t): the teacher's last states there."""
    loss: SoftAndHard
    taught: TopK | None = None
    """Its opinion, where it is known."""


class StudentHead(nn.Linear):
    """A head that, when it is asked, returns the sum of the loss where a model expects logits."""

    asked: Asked | None = None

    @contextmanager
    def asked_for(self, asked: Asked) -> Iterator[None]:
        self.asked = asked
        try:
            yield
        finally:
            self.asked = None

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Hidden states (B, S, H) -> logits (B, S, V), or the loss, a float32 scalar."""
        if self.asked is None:
            return super().forward(hidden)
        return self._loss(hidden[self.asked.chosen], self.asked)

    def _loss(self, hidden: torch.Tensor, asked: Asked) -> torch.Tensor:
        parts = (hidden, self.weight, self.bias)
        needs, dtype = needed(*parts), product_dtype(hidden)

        def work(teacher_hidden: torch.Tensor) -> Gradients:
            head = asked.teacher
            weight = None if head is None else head.weight.to(dtype)
            bias = None if head is None or head.bias is None else head.bias.to(dtype)

            def into_gradient(logits: torch.Tensor, rows: slice) -> torch.Tensor:
                teacher: torch.Tensor | TopK = logits  # which is not looked at where there is none
                if asked.taught is not None:
                    teacher = asked.taught[rows]
                elif weight is not None:
                    teacher = F.linear(teacher_hidden[rows].to(dtype), weight, bias).float()
                return asked.loss(logits, teacher, asked.labels[rows])

            return linear_gradients(*parts, into_gradient, needs)

        with torch.no_grad():
            if asked.teacher is None or asked.hidden is None:
                total, grads = work(hidden)
            else:
                total, grads = asked.teacher.at_work(asked.hidden, work)
        return with_gradients(total, parts, grads)


def fuse_heads(student: Any, teacher: Any) -> bool:
    """Let both heads give the loss, where both are plain and their outputs are what the models return. Whether they
    are."""
    if not (has_plain_head(student) and has_plain_head(teacher)):
        return False
    student.get_output_embeddings().__class__ = StudentHead
    teacher.get_output_embeddings().__class__ = TeacherHead
    return True


def has_plain_head(model: Any) -> bool:
    """Whether its logits are a linear layer's output, and nothing is done to them."""
    head = model.get_output_embeddings()
    return type(head) is nn.Linear and returned_as_is(model, head)


def logits_loss(
    logits: torch.Tensor, teacher: torch.Tensor | TopK | None, labels: torch.Tensor, loss: SoftAndHard
) -> torch.Tensor:
    """Of heads that are not plain: the same from logits (N, V), a float32 scalar."""
    own = logits.detach().to(torch.float32, copy=True)
    if isinstance(teacher, torch.Tensor):
        teacher = teacher.to(torch.float32, copy=True)
    total = loss(own, own if teacher is None else teacher, labels)
    return with_gradients(total, (logits,), (own.to(logits.dtype),))
