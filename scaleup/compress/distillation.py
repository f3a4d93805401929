"""A language model that learns from a larger one: its distribution over tokens, the labels, its hidden states."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from scaleup.compress.distill_head import Asked, StudentHead, TeacherHead, fuse_heads, has_plain_head, logits_loss
from scaleup.compress.hidden_states import distance_sum, outputs_of
from scaleup.compress.taught import Taught
from scaleup.config.distill import DistillSettings
from scaleup.data.collate import TopK
from scaleup.data.tokenization import IGNORE
from scaleup.models.soft_prompts import num_prepended
from scaleup.train.losses import labelled_logits


class Distillation(Taught):
    """Two causal or two encoder-decoder models of one vocabulary."""

    def __init__(self, student: Any, teacher: Any, settings: DistillSettings) -> None:
        super().__init__(student, teacher, settings)
        self.is_fused = fuse_heads(student, teacher)

    def forward(self, labels: torch.Tensor, **inputs: torch.Tensor) -> torch.Tensor:
        """The loss summed over the labelled positions of a batch (B, S), a float32 scalar: soft, hard and of hidden
        states. Without labels it is a zero that still has a gradient."""
        own_labels = F.pad(labels, (num_prepended(self.student), 0), value=IGNORE)
        chosen, own_chosen = labels != IGNORE, own_labels != IGNORE
        last, states = self._taught(labels, chosen, inputs)
        with outputs_of(self.student, (own for own, _ in self.pairs)) as own_states:
            if self.is_fused:
                head: StudentHead = self.student.get_output_embeddings()
                teacher: TeacherHead | None = None if last is None else self.teacher.get_output_embeddings()
                with head.asked_for(Asked(own_chosen, labels[chosen], teacher, last, self.loss)):
                    loss = self.student(**inputs, use_cache=False).logits
            else:
                logits, targets = labelled_logits(self.student, own_labels, inputs)
                loss = logits_loss(logits, last, targets, self.loss)
        if self.hidden is None:
            return loss
        return loss + self.hidden.weight * self._distance(own_states, own_chosen, states)

    @torch.no_grad()
    def _taught(
        self, labels: torch.Tensor, chosen: torch.Tensor, inputs: dict[str, torch.Tensor]
    ) -> tuple[torch.Tensor | None, list[torch.Tensor]]:
        """What the teacher says of the labelled positions: what its head is given (N, H_t), or its logits (N, V) where
        the heads are not plain, and the states (N, H_t) of the pairs' layers. Nothing that is not asked for."""
        if self.loss.alpha == 0 and not self.pairs:
            return None, []
        with outputs_of(self.teacher, (layer for _, layer in self.pairs)) as states:
            if self.is_fused:
                last = self.teacher(**inputs, use_cache=False).logits[chosen]
            else:
                last, _ = labelled_logits(self.teacher, labels, inputs)
        return (last if self.loss.alpha > 0 else None), [states[layer][chosen] for _, layer in self.pairs]

    def _distance(
        self, own_states: dict[int, torch.Tensor], chosen: torch.Tensor, states: list[torch.Tensor]
    ) -> torch.Tensor:
        assert self.hidden is not None
        own = self.projected([own_states[layer][chosen] for layer, _ in self.pairs])
        kind = self.hidden.loss
        return torch.stack([distance_sum(*pair, kind) for pair in zip(own, states, strict=True)]).mean()


class CachedDistillation(Taught):
    """A student whose teacher has spoken: its opinion comes with the labels, in their order, whatever stands before the
    tokens of a row (a soft prompt moves positions, and leaves no label out)."""

    def __init__(self, student: Any, settings: DistillSettings) -> None:
        super().__init__(student, None, settings)
        self.is_fused = has_plain_head(student)
        if self.is_fused:
            student.get_output_embeddings().__class__ = StudentHead

    def forward(self, labels: torch.Tensor, taught: TopK, **inputs: torch.Tensor) -> torch.Tensor:
        """The loss summed over the N labelled positions of a batch (B, S), a float32 scalar."""
        assert taught.log_probs.dtype == torch.float32, "an engine has rounded what the teacher said"
        own_labels = F.pad(labels, (num_prepended(self.student), 0), value=IGNORE)
        if not self.is_fused:
            logits, targets = labelled_logits(self.student, own_labels, inputs)
            return logits_loss(logits, taught, targets, self.loss)
        head: StudentHead = self.student.get_output_embeddings()
        with head.asked_for(Asked(own_labels != IGNORE, labels[labels != IGNORE], None, None, self.loss, taught)):
            loss: torch.Tensor = self.student(**inputs, use_cache=False).logits
        return loss
