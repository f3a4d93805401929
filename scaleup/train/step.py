"""A model and the batches of one step go in; updated weights and the step's loss come out. An evaluation's mean loss
comes from here, too."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from scaleup.data.collate import Batch
from scaleup.distributed.engines import NonFiniteError, base_optimizer
from scaleup.distributed.runtime import Runtime
from scaleup.models.padding import padding_known

Objective = Callable[[Any, Batch], torch.Tensor]
"""Maps (model, batch) -> the loss summed over the batch's labelled tokens, or rows, a float32 scalar."""


@dataclass(frozen=True)
class StepResult:
    loss: float
    learning_rate: float
    """Is the rate that this step was taken with."""
    grad_norm: float
    num_tokens: int
    """Counts the real tokens of the global batch."""
    stop_requested: bool
    """Tells that some rank got a signal."""
    save_requested: bool
    """Tells that some rank wants a checkpoint."""
    skipped: bool
    """Tells (fp16 only) that the gradient overflowed, and the loss scale went down instead of the weights moving."""


def train_step(
    runtime: Runtime,
    model: torch.nn.Module,
    optimizer: Any,
    batches: Sequence[Batch],
    objective: Objective,
    max_grad_norm: float,
    penalty: Callable[[], torch.Tensor] | None = None,
    asks_to_save: Callable[[], bool] = lambda: False,
) -> StepResult:
    """Take one optimizer step on the global batch, of which `batches` is this rank's share. `penalty` depends on the
    weights alone and is added to the step's loss, once. All ranks learn whether `asks_to_save` was true on any of them
    at the end of the step: it travels with the loss, which saves a collective.

    The loss is the sum over all tokens of all ranks and micro-batches, divided by their number. Every engine averages
    gradients over ranks, so each rank's part is scaled by the number of ranks. Raises NonFiniteError."""
    num_labels, num_tokens = runtime.sum(sum(b.num_labels for b in batches), sum(b.num_tokens for b in batches))
    scale = runtime.world / (num_labels or 1.0)
    loss_sum, added = (torch.zeros((), device=runtime.device) for _ in range(2))
    for number, batch in enumerate(batches):
        last = number == len(batches) - 1
        runtime.progress.enter_phase("forward and backward")
        with runtime.micro_batch(model, last=last), padding_known(batch.is_padded):
            loss = objective(model, batch.to(runtime.device))
            scaled = loss * scale
            if last and penalty is not None:
                added = penalty()
                scaled = scaled + added
            runtime.backward(model, scaled)
        loss_sum += loss.detach()
    # the penalty is the same on all ranks
    total, extra, stop, save = runtime.sum(loss_sum, added, runtime.stop.requested, asks_to_save())
    loss_value = total / (num_labels or 1.0) + extra / runtime.world
    if not math.isfinite(loss_value):
        raise NonFiniteError(f"the loss is {loss_value}")
    runtime.progress.enter_phase("update")
    learning_rate = base_optimizer(optimizer).param_groups[0]["lr"]
    grad_norm, skipped = runtime.update(model, optimizer, max_grad_norm)
    return StepResult(loss_value, learning_rate, grad_norm, int(num_tokens), stop > 0, save > 0, skipped)


@torch.no_grad()
def evaluate_loss(runtime: Runtime, model: torch.nn.Module, batches: Iterable[Batch], objective: Objective) -> float:
    """Return the mean loss a labelled token over all ranks' batches; dropout off. Raises NonFiniteError."""
    model.eval()
    loss_sum, num_labels = torch.zeros((), dtype=torch.float64, device=runtime.device), 0.0
    for batch in batches:
        runtime.progress.enter_phase("evaluating")
        with padding_known(batch.is_padded):
            loss_sum += objective(model, batch.to(runtime.device))
        num_labels += batch.num_labels
    model.train()
    total, count = runtime.sum(loss_sum, num_labels)
    mean = total / (count or 1.0)
    if not math.isfinite(mean):
        raise NonFiniteError(f"the validation loss is {mean}")
    return mean
