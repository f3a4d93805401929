"""What distillation trains: a student and its frozen teacher in one module, so that one engine wraps, shards and saves
them together, as PPO's policy does with its reference."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from scaleup.compress.distill_head import Asked, StudentHead, TeacherHead, fuse_heads, logits_loss
from scaleup.compress.divergence import SoftAndHard
from scaleup.compress.hidden_states import decoder_layers, distance_sum, layer_pairs, outputs_of
from scaleup.config.distill import DistillSettings
from scaleup.config.stages import DistillConfig
from scaleup.data.collate import Batch
from scaleup.data.tokenization import IGNORE
from scaleup.distributed.runtime import seed_everything
from scaleup.models.adapted import load_finished
from scaleup.models.soft_prompts import num_prepended
from scaleup.plan.facts import ModelFacts
from scaleup.train.losses import labelled_logits
from scaleup.train.model import trainable_model

STUDENT = "student"
"""The part of a Distillation that is the result."""


class Distillation(nn.Module):
    """Two causal or two encoder-decoder models of one vocabulary. The teacher has no gradients and no dropout."""

    def __init__(self, student: Any, teacher: Any, settings: DistillSettings) -> None:
        super().__init__()
        self.student = student
        self.teacher = teacher.requires_grad_(False).eval()
        self.config = student.config
        self._loss = SoftAndHard(settings.jsd_beta, settings.temperature, settings.alpha)
        self._hidden = settings.hidden
        self._pairs: list[tuple[int, int]] = []
        self.projections = nn.ModuleList()
        if settings.hidden is not None:
            depths = [len(decoder_layers(model)) for model in (student, teacher)]
            self._pairs = layer_pairs(settings.hidden, *depths)
            widths = [model.config.get_text_config().hidden_size for model in (student, teacher)]
            if settings.hidden.projection or widths[0] != widths[1]:
                self.projections.extend(nn.Linear(widths[0], widths[1], bias=False) for _ in self._pairs)
        self.is_fused = fuse_heads(student, teacher)

    def train(self, mode: bool = True) -> Distillation:
        """The teacher stays in evaluation mode."""
        super().train(mode)
        self.teacher.eval()
        return self

    def forward(self, labels: torch.Tensor, **inputs: torch.Tensor) -> torch.Tensor:
        """The loss summed over the labelled positions of a batch (B, S), a float32 scalar: soft, hard and of hidden
        states. Without labels it is a zero that still has a gradient."""
        own_labels = F.pad(labels, (num_prepended(self.student), 0), value=IGNORE)
        chosen, own_chosen = labels != IGNORE, own_labels != IGNORE
        last, states = self._taught(labels, chosen, inputs)
        with outputs_of(self.student, (own for own, _ in self._pairs)) as own_states:
            if self.is_fused:
                head: StudentHead = self.student.get_output_embeddings()
                teacher: TeacherHead | None = None if last is None else self.teacher.get_output_embeddings()
                with head.asked_for(Asked(own_chosen, labels[chosen], teacher, last, self._loss)):
                    loss = self.student(**inputs, use_cache=False).logits
            else:
                logits, targets = labelled_logits(self.student, own_labels, inputs)
                loss = logits_loss(logits, last, targets, self._loss)
        if self._hidden is None:
            return loss
        return loss + self._hidden.weight * self._distance(own_states, own_chosen, states)

    @torch.no_grad()
    def _taught(
        self, labels: torch.Tensor, chosen: torch.Tensor, inputs: dict[str, torch.Tensor]
    ) -> tuple[torch.Tensor | None, list[torch.Tensor]]:
        """What the teacher says of the labelled positions: what its head is given (N, H_t), or its logits (N, V) where
        the heads are not plain, and the states (N, H_t) of the pairs' layers. Nothing that is not asked for."""
        if self._loss.alpha == 0 and not self._pairs:
            return None, []
        with outputs_of(self.teacher, (layer for _, layer in self._pairs)) as states:
            if self.is_fused:
                last = self.teacher(**inputs, use_cache=False).logits[chosen]
            else:
                last, _ = labelled_logits(self.teacher, labels, inputs)
        return (last if self._loss.alpha > 0 else None), [states[layer][chosen] for _, layer in self._pairs]

    def _distance(
        self, own_states: dict[int, torch.Tensor], chosen: torch.Tensor, states: list[torch.Tensor]
    ) -> torch.Tensor:
        assert self._hidden is not None
        own = [own_states[layer][chosen] for layer, _ in self._pairs]
        if len(self.projections):
            makers: list[Any] = list(self.projections)
            own = [make(each.to(make.weight.dtype)) for make, each in zip(makers, own, strict=True)]
        kind = self._hidden.loss
        return torch.stack([distance_sum(*pair, kind) for pair in zip(own, states, strict=True)]).mean()

    # What engines ask a model for: how to divide it into layers, and which embeddings it shares.

    @property
    def _no_split_modules(self) -> set[str]:
        return {name for model in (self.student, self.teacher) for name in model._no_split_modules or ()}

    def get_input_embeddings(self) -> Any:
        return self.student.get_input_embeddings()

    def get_output_embeddings(self) -> Any:
        return self.student.get_output_embeddings()


def load_distillation(
    config: DistillConfig, facts: ModelFacts, teacher: ModelFacts, device: torch.device
) -> Distillation:
    """The student as stage `sft` would train it, and its teacher as it is, on the CPU in float32: the engine moves or
    shards it. The same on every rank. Raises ScaleupError as loading does."""
    frozen = load_finished(config.teacher, teacher, None, config.mixed_precision, torch.device("cpu"))
    student = trainable_model(config, facts, device)
    seed_everything(config.train.seed)  # projections are drawn alike
    return Distillation(student, frozen, config.distill)


def distillation_loss(model: Any, batch: Batch) -> torch.Tensor:
    """The objective of the loop: summed over a batch's labelled positions, a float32 scalar."""
    loss: torch.Tensor = model(labels=batch.labels, **batch.inputs)
    return loss
