"""Hidden states and sampled tokens go in; log-probabilities and entropies come out, not logits: this is the head of a
policy.

Log-probabilities and entropies come from TRL's kernel, which never has all logits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from scaleup.models.heads import ToldHead, has_plain_head, swap_head, told

VOCABULARY_CHUNK = 8192
"""Counts the columns of the logits that exist at a time, for up to 4096 positions."""


@dataclass(frozen=True)
class TokenQuery:
    """Holds B responses of up to T tokens, and the columns of hidden states that predict them: `first` to `first` + T -
    1."""

    first: int
    tokens: torch.Tensor
    """Holds token ids (B, T)."""
    places: torch.Tensor
    """Holds the positions (N,) of the responses' tokens in (B, T), laid out row by row."""
    temperature: float


@dataclass(frozen=True)
class TokenStats:
    """Holds statistics of B responses of up to T tokens, in float32; 0 outside of the mask."""

    logprobs: torch.Tensor
    """Holds (B, T) log pi(token | all tokens before it) at the sampling temperature, in nats."""
    entropies: torch.Tensor
    """Holds entropies (B, T) of the distribution that the token was drawn from, in nats."""
    hidden: torch.Tensor
    """Holds the trunk's last hidden states (B, T, H), before each token."""


class PolicyHead(ToldHead):
    """Returns, given a `TokenQuery`, all `TokenStats` in one tensor in place of the logits."""

    def answer(self, hidden: torch.Tensor, query: TokenQuery) -> torch.Tensor:
        """Return (B, T, H + 2) of hidden states (B, S, H): hidden states, log-probabilities, entropies."""
        hidden = hidden[:, query.first : query.first + query.tokens.shape[1]]
        logprobs, entropies = self._logprobs_and_entropies(at(query.places, hidden), query)
        return torch.cat([hidden.float(), *(_spread(part, query)[..., None] for part in (logprobs, entropies))], 2)

    def _logprobs_and_entropies(self, hidden: torch.Tensor, query: TokenQuery) -> tuple[torch.Tensor, torch.Tensor]:
        """Return log-probabilities and entropies (N,) in nats of N tokens, from the hidden states (N, H) before
        them."""
        from trl.kernels import ChunkedLogProbFunction

        tokens, chunk = at(query.places, query.tokens), min(VOCABULARY_CHUNK, self.out_features)
        # By position, as autograd functions take no keywords: None is no soft cap of the logits, 1.0 no scale of them.
        logprobs, entropies, *_ = ChunkedLogProbFunction.apply(
            hidden, self.weight, self.bias, tokens, query.temperature, chunk, None, 1.0, ("entropy",)
        )
        return logprobs, entropies


def swap_policy_head(model: Any) -> None:
    """Turn a model's head into a `PolicyHead`, if it is plain and its output is what the model returns."""
    if has_plain_head(model):
        swap_head(model.get_output_embeddings(), PolicyHead)


def token_stats(model: Any, inputs: dict[str, torch.Tensor], query: TokenQuery) -> TokenStats:
    """Return the statistics of tokens by one forward pass. A head that is not plain gives all its logits, from which
    they are computed."""
    head = model.get_output_embeddings()
    if isinstance(head, PolicyHead):
        with told(query, head):
            packed = model(**inputs, use_cache=False).logits
        return TokenStats(packed[..., -2], packed[..., -1], packed[..., :-2])
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
    return TokenStats(_spread(chosen, query), _spread(entropies, query), kept[0][:, columns].float())


def at(places: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Return (N, ...), of values (B, T, ...), at positions (N,) in (B, T), laid out row by row."""
    return values.flatten(0, 1).index_select(0, places)


def _spread(values: torch.Tensor, query: TokenQuery) -> torch.Tensor:
    """Return values (N,) at the N tokens (B, T) of a query; 0 elsewhere."""
    return values.new_zeros(query.tokens.numel()).index_copy(0, query.places, values).view(query.tokens.shape)
