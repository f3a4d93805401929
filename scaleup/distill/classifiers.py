"""This module computes the loss of a classifier that learns from a larger one: its class probabilities, the labels, and
its hidden states."""

from __future__ import annotations

import torch

from scaleup.data.collate import Places
from scaleup.data.tokenization import IGNORE
from scaleup.distill.heads import logits_loss
from scaleup.distill.hidden_states import distance_sum, outputs_of
from scaleup.distill.module import StudentWithTeacher
from scaleup.models.classifier import classify


class ClassifierDistillation(StudentWithTeacher):
    """Distils a sequence classifier into another one of the same labels. It is the recipe of DistilBERT (Sanh et al.
    2019), on a task: softened cross-entropy, the task's own, and the cosine of hidden states."""

    def forward(self, labels: torch.Tensor, places: Places, **inputs: torch.Tensor) -> torch.Tensor:
        """Returns the loss summed over the rows with a label of (B,), a float32 scalar. Fillers, whose label is IGNORE,
        add nothing."""
        teacher, states = self._teacher_outputs(inputs)
        with outputs_of(self.student, (layer for layer, _ in self.pairs)) as own_states:
            logits = classify(self.student, inputs)
        known = None if teacher is None else places.select(teacher)
        loss = logits_loss(places.select(logits), known, places.select(labels), self.loss)
        if self.hidden is None:
            return loss
        mask = inputs["attention_mask"] * (labels != IGNORE)[:, None]
        return loss + self.hidden.weight * self._distance(own_states, states, mask)

    @torch.no_grad()
    def _teacher_outputs(self, inputs: dict[str, torch.Tensor]) -> tuple[torch.Tensor | None, dict[int, torch.Tensor]]:
        """Returns the teacher's logits (B, L), and the states (B, S, H) of the pairs' layers: what the loss needs."""
        if self.loss.alpha == 0 and not self.pairs:
            return None, {}
        with outputs_of(self.teacher, (layer for _, layer in self.pairs)) as states:
            logits = classify(self.teacher, inputs)
        return (logits if self.loss.alpha > 0 else None), states

    def _distance(
        self, own: dict[int, torch.Tensor], states: dict[int, torch.Tensor], mask: torch.Tensor
    ) -> torch.Tensor:
        """Returns the distance of hidden states summed over the rows, in the mean over the pairs of layers. A row's is
        the mean over its tokens, which the mask (B, S) has, so that long texts weigh no more than short ones; fillers,
        of which it has none, weigh nothing."""
        share = (mask / mask.sum(dim=1, keepdim=True).clamp(min=1)).flatten()
        pairs = zip(self.projected([own[layer].flatten(0, 1) for layer, _ in self.pairs]), self.pairs, strict=True)
        assert self.hidden is not None
        return torch.stack(
            [distance_sum(one, states[layer].flatten(0, 1), self.hidden.loss, share) for one, (_, layer) in pairs]
        ).mean()
