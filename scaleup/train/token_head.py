"""Hidden states and tokens go in; the tokens' log-probabilities come out, not logits: this is the head of a policy.

What PPO and the preference losses make of a log-probability is known only when the whole row's are, so its gradient
cannot be taken while the logits are there, as `head_loss` does. A chunk's logits are therefore computed twice, forward
and backward, and only one chunk's ever exist. Where the head is frozen, as beside an adapter, once is enough: each
token's gradient by its hidden state is known but for a factor."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from scaleup.models.heads import ToldHead, has_plain_head, swap_head, told
from scaleup.plan.arithmetic import LOGITS_CHUNK
from scaleup.train.head_loss import add_gradients, needed, product_dtype


@dataclass(frozen=True)
class TokenQuery:
    """Holds B rows of up to T tokens, and the columns of hidden states that predict them: `first` to `first` + T -
    1."""

    first: int
    tokens: torch.Tensor
    """Holds token ids (B, T)."""
    places: torch.Tensor
    """Holds the positions (N,) of the tokens in question in (B, T), laid out row by row."""
    temperature: float = 1.0
    learns_entropy: bool = False
    """Tells whether entropies have a gradient."""
    wants_hidden: bool = False
    """Tells whether hidden states are returned, too."""


@dataclass(frozen=True)
class TokenStats:
    """Holds statistics of B rows of up to T tokens, in float32; 0 outside of the query's places."""

    logprobs: torch.Tensor
    """Holds (B, T) log pi(token | all tokens before it) at the query's temperature, in nats."""
    entropies: torch.Tensor
    """Holds entropies (B, T) of the distribution that the token is drawn from, in nats."""
    hidden: torch.Tensor | None = None
    """Holds the trunk's last hidden states (B, T, H), before each token, if they are wanted."""


class TokenHead(ToldHead):
    """Returns, given a `TokenQuery`, all `TokenStats` in one tensor in place of the logits."""

    def answer(self, hidden: torch.Tensor, query: TokenQuery) -> torch.Tensor:
        """Return (B, T, H + 2) of hidden states (B, S, H): log-probabilities, entropies and, if they are wanted, hidden
        states; else (B, T, 2)."""
        hidden = hidden[:, query.first : query.first + query.tokens.shape[1]]
        tokens, chosen = at(query.places, query.tokens), at(query.places, hidden)
        parts = (chosen, self.weight, self.bias)
        logprobs, entropies = linear_logprobs(*parts, tokens, query.temperature, query.learns_entropy)
        spread = [_spread(part, query)[..., None] for part in (logprobs, entropies)]
        return torch.cat([*spread, *([hidden.float()] if query.wants_hidden else [])], dim=2)


def swap_token_head(model: Any) -> None:
    """Turn a model's head into a `TokenHead`, if it is plain and its output is what the model returns."""
    if has_plain_head(model):
        swap_head(model.get_output_embeddings(), TokenHead)


def token_stats(model: Any, inputs: dict[str, torch.Tensor], query: TokenQuery) -> TokenStats:
    """Return the statistics of tokens by one forward pass. A head that is not plain gives all its logits, from which
    they are computed."""
    head = model.get_output_embeddings()
    if isinstance(head, TokenHead):
        with told(query, head):
            packed = model(**inputs, use_cache=False).logits
        return TokenStats(packed[..., 0], packed[..., 1], packed[..., 2:] if query.wants_hidden else None)
    kept: list[torch.Tensor] = []
    hook = head.register_forward_pre_hook(lambda module, inputs: kept.append(inputs[0]))
    try:
        logits = model(**inputs, use_cache=False).logits
    finally:
        hook.remove()
    columns = slice(query.first, query.first + query.tokens.shape[1])
    log_p = torch.log_softmax(at(query.places, logits[:, columns]).float() / query.temperature, dim=-1)
    chosen = log_p.gather(1, at(query.places, query.tokens)[:, None]).squeeze(1)
    entropies = -(log_p.exp() * log_p).sum(dim=1)
    hidden = kept[0][:, columns].float() if query.wants_hidden else None
    return TokenStats(_spread(chosen, query), _spread(entropies, query), hidden)


def linear_logprobs(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    tokens: torch.Tensor,
    temperature: float = 1.0,
    learns_entropy: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return log-probabilities and entropies (N,) in nats, in float32, of softmax((hidden W^T + b) / temperature) at N
    tokens (N), with gradients by hidden (N, H), weight (V, H) and bias (V); entropies have them if `learns_entropy`.

    Products are in autocast's type where it is on, all else is in float32. Never are there more than LOGITS_CHUNK x V
    logits."""
    by_hidden, *others = needed(hidden, weight, bias)
    logprobs, entropies = _Logprobs.apply(
        hidden, weight, bias, tokens, temperature, by_hidden and not any(others) and not learns_entropy
    )
    return logprobs, entropies if learns_entropy else entropies.detach()


class _Logprobs(torch.autograd.Function):
    """d logprob / d z = one-hot - p, and d entropy / d z = -p (log p + entropy), of z = logits / temperature."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        tokens: torch.Tensor,
        temperature: float,
        at_once: bool,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """`at_once`: the gradient by hidden states is made here, all but its factor."""
        ctx.set_materialize_grads(False)  # without a gradient of entropies, none is computed
        dtype = product_dtype(hidden)
        log_z, logprobs, entropies = (hidden.new_zeros(len(hidden), dtype=torch.float32) for _ in range(3))
        by_hidden = torch.empty_like(hidden, dtype=torch.float32) if at_once else None
        with torch.autocast(hidden.device.type, enabled=False):
            low_weight, low_bias = weight.to(dtype), None if bias is None else bias.to(dtype)
            for rows in _chunks(len(hidden)):
                logits = F.linear(hidden[rows].to(dtype), low_weight, low_bias).float().div_(temperature)
                log_z[rows] = logits.logsumexp(dim=1)
                log_p = logits.sub_(log_z[rows, None])
                logprobs[rows] = log_p.gather(1, tokens[rows, None]).squeeze(1)
                p = log_p.exp()
                entropies[rows] = -log_p.mul_(p).sum(dim=1)
                if by_hidden is not None:
                    p.neg_().scatter_add_(1, tokens[rows, None], torch.ones_like(log_z[rows, None])).div_(temperature)
                    by_hidden[rows] = (p.to(dtype) @ low_weight).float()
        if by_hidden is not None:
            ctx.save_for_backward(by_hidden)
        else:
            ctx.save_for_backward(hidden, weight, bias, tokens, log_z, entropies)
        ctx.temperature, ctx.dtype, ctx.at_once, ctx.hidden_dtype = temperature, dtype, at_once, hidden.dtype
        return logprobs, entropies

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor | None) -> Any:
        by_logprobs, by_entropies = grad_outputs
        if ctx.at_once:
            (by_hidden,) = ctx.saved_tensors
            by_hidden = by_hidden * by_logprobs[:, None] if by_logprobs is not None else torch.zeros_like(by_hidden)
            return by_hidden.to(ctx.hidden_dtype), *([None] * 5)
        hidden, weight, bias, tokens, log_z, entropies = ctx.saved_tensors
        grads = [
            torch.zeros_like(part, dtype=torch.float32) if need else None
            for part, need in zip((hidden, weight, bias), ctx.needs_input_grad[:3], strict=True)
        ]
        if by_logprobs is None:
            by_logprobs = torch.zeros_like(log_z)
        with torch.autocast(hidden.device.type, enabled=False):
            low_weight, low_bias = weight.to(ctx.dtype), None if bias is None else bias.to(ctx.dtype)
            for rows in _chunks(len(hidden)):
                low = hidden[rows].to(ctx.dtype)
                log_p = F.linear(low, low_weight, low_bias).float().div_(ctx.temperature).sub_(log_z[rows, None])
                grad, scale = log_p.exp(), by_logprobs[rows, None]
                if by_entropies is None:
                    grad.mul_(-scale)
                else:
                    grad.mul_(log_p.add_(entropies[rows, None]).mul_(-by_entropies[rows, None]).sub_(scale))
                grad.scatter_add_(1, tokens[rows, None], scale).div_(ctx.temperature)
                add_gradients(grads, rows, grad.to(ctx.dtype), low, low_weight)
        parts = zip(grads, (hidden, weight, bias), strict=True)
        return *(None if grad is None else grad.to(part.dtype) for grad, part in parts), *([None] * 3)


def _chunks(count: int) -> list[slice]:
    return [slice(first, first + LOGITS_CHUNK) for first in range(0, count, LOGITS_CHUNK)]


def at(places: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Return (N, ...), of values (B, T, ...), at positions (N,) in (B, T), laid out row by row."""
    return values.flatten(0, 1).index_select(0, places)


def _spread(values: torch.Tensor, query: TokenQuery) -> torch.Tensor:
    """Return values (N,) at the N tokens (B, T) of a query; 0 elsewhere."""
    return values.new_zeros(query.tokens.numel()).index_copy(0, query.places, values).view(query.tokens.shape)
