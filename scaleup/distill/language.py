"""This module computes the loss of a language model that learns from a larger one: its distribution over tokens, the
labels, its hidden states."""

from __future__ import annotations

from typing import Any

import torch

from scaleup.config.stages.distill import DistillSettings
from scaleup.data.collate import Places, TopK
from scaleup.distill.heads import DistillTargets, StudentHead, logits_loss, swap_heads
from scaleup.distill.hidden_states import distance_sum, outputs_of
from scaleup.distill.module import StudentWithTeacher
from scaleup.models.heads import has_plain_head, swap_head, told
from scaleup.models.soft_prompts import num_prepended
from scaleup.train.losses import labelled_logits


class Distillation(StudentWithTeacher):
    """Distils a language model into another one of the same vocabulary; both are causal or both encoder-decoders."""

    def __init__(self, student: Any, teacher: Any, settings: DistillSettings, num_ids: int | None = None) -> None:
        super().__init__(student, teacher, settings, num_ids)
        self.is_fused = swap_heads(student, teacher)

    def forward(self, labels: torch.Tensor, places: Places, **inputs: torch.Tensor) -> torch.Tensor:
        """Returns the loss summed over the labelled positions of a batch (B, S), a float32 scalar: soft, hard and of
        hidden states. Without labels it is a zero that still has a gradient."""
        labels, own_places = places.select(labels), places.behind(num_prepended(self.student))
        last, states = self._teacher_outputs(places, inputs)
        with outputs_of(self.student, (layer for layer, _ in self.pairs)) as own_states:
            if self.is_fused:
                teacher = None if last is None else self.teacher.get_output_embeddings()
                targets = DistillTargets(own_places, labels, self.loss, teacher, last)
                with told(targets, self.student.get_output_embeddings()):
                    loss = self.student(**inputs, use_cache=False).logits
            else:
                logits = labelled_logits(self.student, own_places, inputs)
                loss = logits_loss(logits, last, labels, self.loss)
        if self.hidden is None:
            return loss
        return loss + self.hidden.weight * self._distance(own_states, own_places, states)

    @torch.no_grad()
    def _teacher_outputs(
        self, places: Places, inputs: dict[str, torch.Tensor]
    ) -> tuple[torch.Tensor | None, list[torch.Tensor]]:
        """Returns the teacher's outputs at the labelled positions: what its head gets (N, H_t), or its logits (N, V)
        where the heads are not plain, and the states (N, H_t) of the pairs' layers. It leaves out what the loss does
        not need."""
        if self.loss.alpha == 0 and not self.pairs:
            return None, []
        places = places.behind(num_prepended(self.teacher))
        with outputs_of(self.teacher, (layer for _, layer in self.pairs)) as states:
            if self.is_fused:
                last = places.select(self.teacher(**inputs, use_cache=False).logits)
            else:
                last = labelled_logits(self.teacher, places, inputs)
        return (last if self.loss.alpha > 0 else None), [places.select(states[layer]) for _, layer in self.pairs]

    def _distance(
        self, own_states: dict[int, torch.Tensor], places: Places, states: list[torch.Tensor]
    ) -> torch.Tensor:
        assert self.hidden is not None
        projected = self.projected([places.select(own_states[layer]) for layer, _ in self.pairs])
        kind = self.hidden.loss
        return torch.stack([distance_sum(*pair, kind) for pair in zip(projected, states, strict=True)]).mean()


class CachedDistillation(StudentWithTeacher):
    """Trains a student whose teacher is cached: its top k come in the order of the labels, whatever stands before the
    tokens.

    A soft prompt moves positions, and leaves no label out."""

    def __init__(self, student: Any, settings: DistillSettings, num_ids: int | None = None) -> None:
        super().__init__(student, None, settings, num_ids)
        self.is_fused = has_plain_head(student)
        if self.is_fused:
            swap_head(student.get_output_embeddings(), StudentHead)

    def forward(
        self, labels: torch.Tensor, places: Places, teacher_top_k: TopK, **inputs: torch.Tensor
    ) -> torch.Tensor:
        """Returns the loss summed over the N labelled positions of a batch (B, S), a float32 scalar."""
        assert teacher_top_k.log_probs.dtype == torch.float32, "an engine has rounded the teacher's log-probabilities"
        labels, own_places = places.select(labels), places.behind(num_prepended(self.student))
        if not self.is_fused:
            return logits_loss(labelled_logits(self.student, own_places, inputs), teacher_top_k, labels, self.loss)
        targets = DistillTargets(own_places, labels, self.loss, top_k=teacher_top_k)
        with told(targets, self.student.get_output_embeddings()):
            loss: torch.Tensor = self.student(**inputs, use_cache=False).logits
        return loss
