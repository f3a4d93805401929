"""What distillation trains: a student and its frozen teacher in one module, so that one engine wraps, shards and saves
them together, as PPO's policy does with its reference."""

from __future__ import annotations

from typing import Any, Self

import torch
from torch import nn

from scaleup.compress.divergence import SoftAndHard
from scaleup.compress.hidden_states import layer_pairs, layers_of
from scaleup.config.distill import DistillSettings

STUDENT = "student"
"""The part of it that is the result."""


class Taught(nn.Module):
    """A student beside its teacher, which has no gradients and no dropout; or alone, where what the teacher says is
    known already."""

    def __init__(self, student: Any, teacher: Any | None, settings: DistillSettings) -> None:
        super().__init__()
        self.student = student
        self.teacher: Any = None if teacher is None else teacher.requires_grad_(False).eval()
        self.config = student.config
        self.loss = SoftAndHard(settings.jsd_beta, settings.temperature, settings.alpha)
        self.hidden = settings.hidden
        self.pairs: list[tuple[int, int]] = []
        self.projections = nn.ModuleList()
        if settings.hidden is not None:
            assert teacher is not None, "the plan refuses hidden states of one that is not there"
            depths = [len(layers_of(model)) for model in (student, teacher)]
            self.pairs = layer_pairs(settings.hidden, *depths)
            widths = [model.config.get_text_config().hidden_size for model in (student, teacher)]
            if settings.hidden.projection or widths[0] != widths[1]:
                self.projections.extend(nn.Linear(widths[0], widths[1], bias=False) for _ in self.pairs)

    def train(self, mode: bool = True) -> Self:
        """The teacher stays in evaluation mode."""
        super().train(mode)
        if self.teacher is not None:
            self.teacher.eval()
        return self

    def projected(self, states: list[torch.Tensor]) -> list[torch.Tensor]:
        """The student's states (N, H) of each pair, as wide as the teacher's."""
        if not len(self.projections):
            return states
        makers: list[Any] = list(self.projections)
        return [make(each.to(make.weight.dtype)) for make, each in zip(makers, states, strict=True)]

    # What engines ask a model for: how to divide it into layers, and which embeddings it shares.

    @property
    def _no_split_modules(self) -> set[str]:
        return {
            name for model in (self.student, self.teacher) for name in getattr(model, "_no_split_modules", None) or ()
        }

    def get_input_embeddings(self) -> Any:
        return self.student.get_input_embeddings()

    def get_output_embeddings(self) -> Any:
        return self.student.get_output_embeddings()
