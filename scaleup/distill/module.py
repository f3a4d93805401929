"""This module puts a student, its frozen teacher and the projections of its hidden states into one module, which an
engine trains."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from scaleup.config.stages.distill import DistillSettings
from scaleup.distill.divergence import SoftAndHard
from scaleup.distill.hidden_states import layer_pairs, layers_of
from scaleup.models.beside import Beside

STUDENT = "student"
"""Names the submodule that is the result."""


class StudentWithTeacher(Beside):
    """Holds a student beside its teacher, which has no gradients and no dropout; or alone, where the teacher's top k
    are cached."""

    trained_part = STUDENT
    frozen_part = "teacher"

    def __init__(
        self, student: Any, teacher: Any | None, settings: DistillSettings, num_ids: int | None = None
    ) -> None:
        super().__init__()
        self.student = student
        self.teacher: Any = None if teacher is None else teacher.requires_grad_(False).eval()
        self.config = student.config
        self.loss = SoftAndHard(settings.jsd_beta, settings.temperature, settings.alpha, num_ids)
        self.hidden = settings.hidden
        self.pairs: list[tuple[int, int]] = []
        self.projections = nn.ModuleList()
        if settings.hidden is not None:
            assert teacher is not None, "the plan refuses hidden states of a cached teacher"
            depths = [len(layers_of(model)) for model in (student, teacher)]
            self.pairs = layer_pairs(settings.hidden, *depths)
            widths = [model.config.get_text_config().hidden_size for model in (student, teacher)]
            if settings.hidden.projection or widths[0] != widths[1]:
                self.projections.extend(nn.Linear(widths[0], widths[1], bias=False) for _ in self.pairs)

    def projected(self, states: list[torch.Tensor]) -> list[torch.Tensor]:
        """Returns the student's states (N, H) of each pair of layers in the teacher's width (N, H_t)."""
        if not len(self.projections):
            return states
        projections: list[Any] = list(self.projections)
        return [project(state.to(project.weight.dtype)) for project, state in zip(projections, states, strict=True)]
