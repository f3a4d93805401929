"""This module computes divergences between a teacher's distribution p and a student's q over a vocabulary, from the
logits of both, with their gradients by the student's logits.

Everything is in place on float32 logits, of which a chunk exists at a time: the student's become the gradient, the
teacher's are used up. With u = logits / T: forward KL has dD/du = q - p; where dD/dq = g, dD/du = q (g - sum q g), and
g is log(q/p) for reverse KL and (1 - beta) log(q/m) for the generalised Jensen-Shannon divergence, with the mixture m =
beta p + (1 - beta) q (Agarwal et al. 2024, equation 1). Beta 0 and 1 stand for the two KLs, as in TRL.

A cached teacher is known by its k likeliest tokens and one event for all others, the tail. Without the tail the k
probabilities would have to be scaled to add up to one, and the student would be taught that all else is impossible: the
minimum of that divergence is not the teacher's distribution, whatever k is. With it the forward KL over k + 1 events is
a lower bound of the whole one (the log sum inequality; Cover and Thomas 2006, theorem 2.7.1), equal to it where k is
the vocabulary's size, and zero for the teacher itself."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from scaleup.data.collate import TopK
from scaleup.train.head_loss import cross_entropy_


@dataclass(frozen=True)
class SoftAndHard:
    """Computes alpha T^2 D(p, q) + (1 - alpha) CE (Hinton et al. 2015): T^2 keeps the soft part's gradient at one
    size."""

    beta: float
    """Chooses D. 0: forward KL(p||q), 1: reverse KL(q||p), between: generalised Jensen-Shannon."""
    temperature: float
    alpha: float
    num_ids: int | None = None
    """Counts the ids that D is over, from 0: those beyond, which no tokenizer gives, are left out of both
    distributions, where student and teacher have different numbers of them; None: all."""

    def __call__(self, logits: torch.Tensor, teacher: torch.Tensor | TopK, labels: torch.Tensor) -> torch.Tensor:
        """Returns the loss in nats summed over labels (C), a scalar; logits (C, V) become the gradient by them, and the
        teacher's are used up. With alpha 0 it is the cross-entropy to the last bit."""
        if self.alpha == 0:
            return cross_entropy_(logits, labels)
        weight = self.alpha * self.temperature**2
        shared = logits[:, : self.num_ids]
        soft = shared if self.alpha == 1 else shared.clone()
        if isinstance(teacher, TopK):
            loss = weight * top_k_divergence_(soft, teacher, self.temperature)
        else:
            loss = weight * divergence_(soft, teacher[:, : self.num_ids], self.beta, self.temperature)
        if self.alpha == 1:
            shared.mul_(weight)
            logits[:, shared.shape[1] :] = 0
            return loss
        loss += (1 - self.alpha) * cross_entropy_(logits, labels)
        logits.mul_(1 - self.alpha)
        shared.add_(soft, alpha=weight)
        return loss


@torch.no_grad()
def divergence_(logits: torch.Tensor, teacher: torch.Tensor, beta: float, temperature: float = 1.0) -> torch.Tensor:
    """Returns D of softmax(teacher / T) and softmax(logits / T) summed over rows, in nats. Both are (C, V) in float32:
    `logits` become dD/dlogits, `teacher` is used up."""
    log_q, log_p = (_log_softmax_(part, temperature) for part in (logits, teacher))
    if beta == 0:
        total = _forward_kl_(log_q, log_p)
    elif beta == 1:
        total = _reverse_kl_(log_q, log_p)
    else:
        total = _jensen_shannon_(log_q, log_p, beta)
    _soften_(logits, temperature)  # dD/dlogits = dD/du / T
    return total


@torch.no_grad()
def top_k_of(logits: torch.Tensor, k: int, temperature: float = 1.0) -> TopK:
    """Returns the k likeliest tokens of softmax(logits / T), and all others as one event: ids (N, k), log-probabilities
    (N, k + 1).

    Logits (N, V) in float32 are used up."""
    _soften_(logits, temperature)
    whole = logits.logsumexp(dim=1, keepdim=True)
    kept, ids = logits.topk(k, dim=1)
    return TopK(ids, _events_(logits, ids, kept).sub_(whole))


@torch.no_grad()
def top_k_divergence_(logits: torch.Tensor, teacher: TopK, temperature: float = 1.0) -> torch.Tensor:
    """Returns sum_K p_i log(p_i / q_i) + p_t log(p_t / q_t), p of the teacher, q = softmax(logits / T), t the tail;
    summed over rows, in nats. Logits (N, V) in float32 become dD/dlogits.

    With u = logits / T, the logit of the tail is u_t = logsumexp of those outside K, and D is a plain forward KL of k +
    1 logits: dD/du_i = q_i - p_i for each of the events, and du_t/du_j = exp(u_j - u_t). So no probability is made by
    subtraction from 1, which would leave nothing of a small one."""
    ids = teacher.ids.long()
    _soften_(logits, temperature)
    events = _events_(logits, ids, logits.gather(1, ids))
    tail = events[:, -1:].clamp_min(torch.finfo(events.dtype).min)  # -inf where there is none
    log_q, log_p = events.log_softmax(dim=1), teacher.log_probs
    p = log_p.exp()
    total = torch.where(p > 0, p * (log_p - log_q), 0).sum()
    by_events = log_q.exp().sub_(p)
    logits.sub_(tail).exp_().mul_(by_events[:, -1:]).scatter_(1, ids, by_events[:, :-1])
    _soften_(logits, temperature)  # dD/dlogits = dD/du / T
    return total


def _forward_kl_(log_q: torch.Tensor, log_p: torch.Tensor) -> torch.Tensor:
    p = log_p.exp()
    total = _expected(p, log_p.sub_(log_q)).sum()
    log_q.exp_().sub_(p)
    return total


def _reverse_kl_(log_q: torch.Tensor, log_p: torch.Tensor) -> torch.Tensor:
    ratio = log_p.neg_().add_(log_q)
    q = log_q.exp_()
    row_kl = _expected(q, ratio)
    q.mul_(ratio.sub_(row_kl.unsqueeze(1)))
    return row_kl.sum()


def _jensen_shannon_(log_q: torch.Tensor, log_p: torch.Tensor, beta: float) -> torch.Tensor:
    log_m = torch.logaddexp(log_p + math.log(beta), log_q + math.log1p(-beta))
    p = log_p.exp()
    from_teacher = _expected(p, log_p.sub_(log_m)).sum()
    ratio = log_m.neg_().add_(log_q)
    q = log_q.exp_()
    row_kl = _expected(q, ratio)
    q.mul_(ratio.sub_(row_kl.unsqueeze(1))).mul_(1 - beta)
    return beta * from_teacher + (1 - beta) * row_kl.sum()


def _log_softmax_(logits: torch.Tensor, temperature: float) -> torch.Tensor:
    _soften_(logits, temperature)
    return logits.sub_(logits.logsumexp(dim=1, keepdim=True))


def _expected(weights: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Returns the sum of weights times values (C, V) in each row, (C), without their product in memory."""
    return torch.linalg.vecdot(weights, values)


def _events_(logits: torch.Tensor, ids: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
    """Returns the logits (N, k + 1) of the events: the kept ones, and the logsumexp of the others, which alone stay in
    `logits`."""
    tail = logits.scatter_(1, ids, -torch.inf).logsumexp(dim=1, keepdim=True)
    return torch.cat([kept, tail], dim=1)


def _soften_(logits: torch.Tensor, temperature: float) -> None:
    if temperature != 1:
        logits.div_(temperature)
