"""Divergences between a teacher's distribution p and a student's q over a vocabulary, with their gradients by the
student's logits.

Everything is in place on float32 logits, of which a chunk exists at a time: the student's become the gradient, the
teacher's are used up. With u = logits / T: forward KL has dD/du = q - p; where dD/dq = g, dD/du = q (g - sum q g), and
g is log(q/p) for reverse KL and (1 - beta) log(q/m) for the generalised Jensen-Shannon divergence, with the mixture
m = beta p + (1 - beta) q (Agarwal et al. 2024, equation 1). Beta 0 and 1 stand for the two KLs, as in TRL."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from scaleup.compress.top_k import top_k_divergence_
from scaleup.data.collate import TopK
from scaleup.train.head_loss import cross_entropy_


@dataclass(frozen=True)
class SoftAndHard:
    """alpha T^2 D(p, q) + (1 - alpha) CE (Hinton et al. 2015): T^2 keeps the soft part's gradient at one size."""

    beta: float
    """0: forward KL(p||q), 1: reverse KL(q||p), between: generalised Jensen-Shannon."""
    temperature: float
    alpha: float

    def __call__(self, logits: torch.Tensor, teacher: torch.Tensor | TopK, labels: torch.Tensor) -> torch.Tensor:
        """Summed over labels (C), a scalar; logits (C, V) become the gradient by them, and the teacher's are used up.
        With alpha 0 it is the cross-entropy to the last bit."""
        if self.alpha == 0:
            return cross_entropy_(logits, labels)
        weight = self.alpha * self.temperature**2
        soft = logits if self.alpha == 1 else logits.clone()
        if isinstance(teacher, TopK):
            loss = weight * top_k_divergence_(soft, teacher, self.temperature)
        else:
            loss = weight * divergence_(soft, teacher, self.beta, self.temperature)
        if self.alpha == 1:
            logits.mul_(weight)
            return loss
        loss += (1 - self.alpha) * cross_entropy_(logits, labels)
        logits.mul_(1 - self.alpha).add_(soft, alpha=weight)
        return loss


@torch.no_grad()
def divergence_(logits: torch.Tensor, teacher: torch.Tensor, beta: float, temperature: float = 1.0) -> torch.Tensor:
    """D of softmax(teacher / T) and softmax(logits / T) summed over rows, in nats. Both (C, V) in float32: `logits`
    become dD/dlogits, `teacher` is used up."""
    log_q, log_p = (_log_softmax_(part, temperature) for part in (logits, teacher))
    if beta == 0:
        total = _forward_kl_(log_q, log_p)
    elif beta == 1:
        total = _reverse_kl_(log_q, log_p)
    else:
        total = _jensen_shannon_(log_q, log_p, beta)
    if temperature != 1:
        logits.div_(temperature)
    return total


def _forward_kl_(log_q: torch.Tensor, log_p: torch.Tensor) -> torch.Tensor:
    p = log_p.exp()
    total = _expected(p, log_p.sub_(log_q)).sum()
    log_q.exp_().sub_(p)
    return total


def _reverse_kl_(log_q: torch.Tensor, log_p: torch.Tensor) -> torch.Tensor:
    ratio = log_p.neg_().add_(log_q)
    q = log_q.exp_()
    each = _expected(q, ratio)
    q.mul_(ratio.sub_(each.unsqueeze(1)))
    return each.sum()


def _jensen_shannon_(log_q: torch.Tensor, log_p: torch.Tensor, beta: float) -> torch.Tensor:
    log_m = torch.logaddexp(log_p + math.log(beta), log_q + math.log1p(-beta))
    p = log_p.exp()
    from_teacher = _expected(p, log_p.sub_(log_m)).sum()
    ratio = log_m.neg_().add_(log_q)
    q = log_q.exp_()
    each = _expected(q, ratio)
    q.mul_(ratio.sub_(each.unsqueeze(1))).mul_(1 - beta)
    return beta * from_teacher + (1 - beta) * each.sum()


def _log_softmax_(logits: torch.Tensor, temperature: float) -> torch.Tensor:
    if temperature != 1:
        logits.div_(temperature)
    return logits.sub_(logits.logsumexp(dim=1, keepdim=True))


def _expected(weights: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Row by row: (C, V), (C, V) -> (C). Without their product in memory."""
    return torch.linalg.vecdot(weights, values)
