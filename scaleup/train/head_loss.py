"""Hidden states, the head's weight and labels go in; the loss and its gradients come out, without all logits at once.

The logits of a batch are its largest tensor by far (positions x vocabulary) and most are not needed: only labelled
positions have a loss. Here a chunk's logits become its part of the gradient in place and are forgotten, so nothing is
computed twice and only one chunk's logits ever exist. torch's `linear_cross_entropy` does the same in float32; on CPUs
it has no autocast, and multiplies half precision in float32. TRL's kernel computes every logit twice:
docs/design/loss.md measures the three."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F

from scaleup.data.collate import Places
from scaleup.models.heads import ToldHead, has_plain_head, swap_head
from scaleup.plan.arithmetic import LOGITS_CHUNK


class LossHead(ToldHead):
    """Returns, told labels and their places, the sum of the loss where a model expects logits."""

    def answer(self, hidden: torch.Tensor, labelled: tuple[torch.Tensor, Places]) -> torch.Tensor:
        """Return the loss, a float32 scalar, of hidden states (B, S, H) and N labels (N)."""
        labels, places = labelled
        return linear_loss_sum(places.select(hidden), self.weight, self.bias, labels)


def fuse_head(model: Any) -> None:
    """Let a model's head compute the loss, where the head is plain and its output is what the model returns: some
    models scale, cap or shift their logits afterwards."""
    if has_plain_head(model):
        swap_head(model.get_output_embeddings(), LossHead)


def loss_head(model: Any) -> LossHead | None:
    """Return the fused head of a model, if it has one."""
    head = model.get_output_embeddings()
    return head if isinstance(head, LossHead) else None


def linear_loss_sum(
    hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, labels: torch.Tensor
) -> torch.Tensor:
    """Return the cross-entropy of softmax(hidden W^T + b) summed over N positions, a float32 scalar.

    hidden (N, H), weight (V, H), bias (V), labels (N). Types are those of `linear_gradients`."""
    parts = (hidden, weight, bias)
    total, grads = linear_gradients(*parts, lambda logits, rows: cross_entropy_(logits, labels[rows]), needed(*parts))
    return with_gradients(total, parts, grads)


IntoGradient = Callable[[torch.Tensor, slice], torch.Tensor]
"""Maps (a chunk's float32 logits (C, V), which of the N positions they are) -> their loss, a scalar; the logits become
its gradient by them, in place."""

Parts = Sequence[torch.Tensor | None]


@torch.no_grad()
def linear_gradients(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    into_gradient: IntoGradient,
    needs: Sequence[bool],
) -> tuple[torch.Tensor, list[torch.Tensor | None]]:
    """Return a loss of the logits hidden W^T + b summed over N positions, a float32 scalar, and its gradient by each of
    hidden (N, H), weight (V, H) and bias (V) that needs one.

    Products are in autocast's type where it is on; softmax, loss and the sum of the weight's gradient over chunks are
    in float32. Not for training in float16: the gradient of the logits is made before the loss scale is known, and most
    of it would be too small for that type."""
    dtype = product_dtype(hidden)
    assert dtype != torch.float16 or not any(needs), "float16 needs the loss scale in the gradient of the logits"
    total = torch.zeros((), device=hidden.device)
    parts = (hidden, weight, bias)
    grads = [
        torch.zeros_like(part, dtype=torch.float32) if need and part is not None else None
        for part, need in zip(parts, needs, strict=True)
    ]
    with torch.autocast(hidden.device.type, enabled=False):
        low_weight = weight.to(dtype)
        low_bias = None if bias is None else bias.to(dtype)
        for first in range(0, len(hidden), LOGITS_CHUNK):
            rows = slice(first, first + LOGITS_CHUNK)
            low = hidden[rows].to(dtype)
            logits = F.linear(low, low_weight, low_bias).float()
            total += into_gradient(logits, rows)
            add_gradients(grads, rows, logits.to(dtype), low, low_weight)
    return total, [
        None if grad is None or part is None else grad.to(part.dtype) for part, grad in zip(parts, grads, strict=True)
    ]


def needed(*parts: torch.Tensor | None) -> list[bool]:
    """Return which of the tensors need a gradient, here and now."""
    return [torch.is_grad_enabled() and part is not None and part.requires_grad for part in parts]


def product_dtype(hidden: torch.Tensor) -> torch.dtype:
    """Return the type in which a product with `hidden` is computed."""
    device = hidden.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype


def with_gradients(total: torch.Tensor, parts: Parts, grads: Parts) -> torch.Tensor:
    """Return `total` as a loss whose gradients by `parts` are known: the backward only scales them, in place."""
    result: torch.Tensor = _Known.apply(total, list(grads), *parts)
    return result


class _Known(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, total: torch.Tensor, grads: list[torch.Tensor | None], *parts: torch.Tensor | None) -> Any:
        ctx.save_for_backward(*grads)
        return total.clone()

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> Any:
        (scale,) = grad_outputs
        return None, None, *(None if grad is None else grad.mul_(scale) for grad in ctx.saved_tensors)


def cross_entropy_(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return the cross-entropy summed over labels (C); the logits (C, V) become the gradient by them, softmax minus
    one-hot, in place."""
    target = labels.unsqueeze(1)
    log_sum = logits.logsumexp(dim=1, keepdim=True)
    loss = (log_sum - logits.gather(1, target)).sum()
    logits.sub_(log_sum).exp_().scatter_add_(1, target, torch.full_like(log_sum, -1.0))
    return loss


def add_gradients(
    grads: list[torch.Tensor | None], rows: slice, by_logits: torch.Tensor, hidden: torch.Tensor, weight: torch.Tensor
) -> None:
    by_hidden, by_weight, by_bias = grads
    if by_hidden is not None:
        by_hidden[rows] = by_logits @ weight
    if by_weight is not None:
        if by_logits.dtype == by_weight.dtype:
            by_weight.addmm_(by_logits.T, hidden)
        else:
            by_weight += by_logits.T @ hidden
    if by_bias is not None:
        by_bias += by_logits.float().sum(dim=0)
