"""A teacher's distribution by its k likeliest tokens and one event for all others, the tail; and the forward KL over
these k + 1 events, with its gradient.

Without the tail the k probabilities would have to be scaled to add up to one, and the student would be taught that all
else is impossible: the minimum of that divergence is not the teacher's distribution, whatever k is. With it the
divergence is a lower bound of the whole one (the log sum inequality; Cover and Thomas 2006, theorem 2.7.1), equal to it
where k is the vocabulary's size, and zero for the teacher itself."""

from __future__ import annotations

import torch

from scaleup.data.collate import TopK


@torch.no_grad()
def top_k_of(logits: torch.Tensor, k: int, temperature: float = 1.0) -> TopK:
    """Of softmax(logits / T). Logits (N, V) in float32 are used up."""
    _soften_(logits, temperature)
    whole = logits.logsumexp(dim=1, keepdim=True)
    kept, ids = logits.topk(k, dim=1)
    return TopK(ids, _events_(logits, ids, kept).sub_(whole))


@torch.no_grad()
def top_k_divergence_(logits: torch.Tensor, teacher: TopK, temperature: float = 1.0) -> torch.Tensor:
    """sum_K p_i log(p_i / q_i) + p_t log(p_t / q_t), p of the teacher, q = softmax(logits / T), t the tail; summed over
    rows, in nats. Logits (N, V) in float32 become dD/dlogits.

    With u = logits / T, the logit of the tail is u_t = logsumexp of those outside K, and D is a plain forward KL of
    k + 1 logits: dD/du_i = q_i - p_i for each of the events, and du_t/du_j = exp(u_j - u_t). So no probability is made
    by subtraction from 1, which would leave nothing of a small one."""
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


def _events_(logits: torch.Tensor, ids: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
    """(N, k + 1): those kept, and the logsumexp of the others, which alone stay in `logits`."""
    tail = logits.scatter_(1, ids, -torch.inf).logsumexp(dim=1, keepdim=True)
    return torch.cat([kept, tail], dim=1)


def _soften_(logits: torch.Tensor, temperature: float) -> None:
    if temperature != 1:
        logits.div_(temperature)
