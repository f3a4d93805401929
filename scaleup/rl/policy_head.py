"""The head of a policy: what the model thinks of tokens that were drawn, instead of logits.

As in `train/head_loss.py`, the head keeps its place, its parameters and their names, so that every engine shards,
gathers and ties it as before. Log-probabilities and entropies come from TRL's kernel, which never has all logits."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from scaleup.train.head_loss import returned_as_is

VOCABULARY_CHUNK = 8192
"""Columns of the logits that exist at a time, for up to 4096 positions."""


@dataclass(frozen=True)
class Asked:
    """B responses of up to T tokens, at the columns that predict them: `first` to `first` + T - 1."""

    first: int
    tokens: torch.Tensor
    """(B, T)"""
    mask: torch.Tensor
    """(B, T)"""
    temperature: float


@dataclass(frozen=True)
class Seen:
    """Of B responses of T tokens; 0 outside of the mask. Float32."""

    logprobs: torch.Tensor
    """(B, T) log pi(token | what stands before it), at the sampling temperature."""
    entropies: torch.Tensor
    """(B, T) of the distribution that the token was drawn from, in nats."""
    hidden: torch.Tensor
    """(B, T, H): the trunk's last state before each token."""


class PolicyHead(nn.Linear):
    """A head that, when it is asked about tokens, returns all of `Seen` in one tensor where a model expects logits."""

    asked: Asked | None = None

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Hidden states (B, S, H) -> logits (B, S, V), or (B, T, H + 2)."""
        asked = self.asked
        if asked is None:
            return super().forward(hidden)
        hidden = hidden[:, asked.first : asked.first + asked.tokens.shape[1]]
        logprobs, entropies = self._of_tokens(hidden[asked.mask], asked)
        return torch.cat([hidden.float(), *(_spread(part, asked.mask)[..., None] for part in (logprobs, entropies))], 2)

    def _of_tokens(self, hidden: torch.Tensor, asked: Asked) -> tuple[torch.Tensor, torch.Tensor]:
        """(N, H) -> (N,) log-probabilities and entropies."""
        from trl.kernels import ChunkedLogProbFunction

        tokens, chunk = asked.tokens[asked.mask], min(VOCABULARY_CHUNK, self.out_features)
        logprobs, entropies, *_ = ChunkedLogProbFunction.apply(
            hidden, self.weight, self.bias, tokens, asked.temperature, chunk, None, 1.0, ("entropy",)
        )
        return logprobs, entropies


class HiddenHead(nn.Linear):
    """The head of a value model: it passes on the hidden states that it gets."""

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden


def ask_head(model: Any) -> None:
    """Let a model's head answer for tokens, where it is plain and its output is what the model returns."""
    head = model.get_output_embeddings()
    if type(head) is nn.Linear and returned_as_is(model, head):
        head.__class__ = PolicyHead


def look(model: Any, inputs: dict[str, torch.Tensor], asked: Asked) -> Seen:
    """One forward pass. A head that is not plain gives all its logits, which are then looked at."""
    head = model.get_output_embeddings()
    if isinstance(head, PolicyHead):
        with _asked(head, asked):
            packed = model(**inputs, use_cache=False).logits
        return Seen(packed[..., -2], packed[..., -1], packed[..., :-2])
    kept: list[torch.Tensor] = []
    hook = head.register_forward_pre_hook(lambda module, given: kept.append(given[0]))
    try:
        logits = model(**inputs, use_cache=False).logits
    finally:
        hook.remove()
    columns = slice(asked.first, asked.first + asked.tokens.shape[1])
    log_p = torch.log_softmax(logits[:, columns][asked.mask].float() / asked.temperature, dim=-1)
    chosen = log_p.gather(1, asked.tokens[asked.mask][:, None]).squeeze(1)
    entropies = -(log_p.exp() * log_p).sum(dim=1)
    return Seen(_spread(chosen, asked.mask), _spread(entropies, asked.mask), kept[0][:, columns].float())


@contextmanager
def _asked(head: PolicyHead, asked: Asked) -> Iterator[None]:
    head.asked = asked
    try:
        yield
    finally:
        head.asked = None


def _spread(found: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """(N,) at the true places of (B, T), 0 elsewhere."""
    return torch.zeros(mask.shape, dtype=found.dtype, device=found.device).masked_scatter(mask, found)
