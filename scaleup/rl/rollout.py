"""Prompts go in; responses come out. A response depends on its prompt, its seed and the weights alone: neither on the
process that draws it, nor on the other rows of its batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, PreTrainedTokenizerBase

from scaleup.config.stages.ppo import PPOSettings
from scaleup.data.chat import answer_ends
from scaleup.data.collate import pad
from scaleup.models.beside import base_of, unwrap
from scaleup.models.load import pad_token_id
from scaleup.rl.advantages import response_lengths


@dataclass(frozen=True)
class Responses:
    """Holds B responses of up to T tokens."""

    tokens: torch.Tensor
    """Holds token ids (B, T), padded with the pad token."""
    lengths: torch.Tensor
    """Counts the tokens (B,) of each, with the EOS."""
    finished: torch.Tensor
    """Tells (B,) whether they end with an EOS."""


@dataclass(frozen=True)
class Sampling:
    """Holds the settings of generation. Tokens are drawn from the whole distribution at a temperature: with top-k or
    top-p the ratio of probabilities would be wrong."""

    max_new_tokens: int
    min_limit: int | None
    """Bounds responses from below, in tokens. If given, each response's limit is drawn uniformly between this and
    max_new_tokens."""
    temperature: float
    eos_ids: tuple[int, ...]
    pad_id: int


def draws_of(seed: Sequence[int], count: int) -> np.ndarray:
    """Return uniform numbers (count,) in [0, 1), which depend on the seed alone."""
    return np.random.default_rng(list(seed)).random(count)


@torch.no_grad()
def respond(
    model: Any,
    prompts: Sequence[Sequence[int]],
    seeds: Sequence[Sequence[int]],
    sampling: Sampling,
    device: torch.device,
    together: bool = False,
) -> Responses:
    """Return the responses of a (wrapped) Policy in evaluation mode to B prompts (token ids), each with a seed of its
    own. `together`: all ranks generate equally many tokens, as ranks must that gather weights for each of them."""
    policy = unwrap(model)
    ids, mask = pad(prompts, sampling.pad_id, left=not policy.is_seq2seq)
    draws = np.stack([draws_of(seed, sampling.max_new_tokens + 1) for seed in seeds])
    with _drawing(policy.policy, sampling):
        output = (model if together else policy)(
            "generate",
            input_ids=ids.to(device),
            attention_mask=mask.to(device),
            logits_processor=LogitsProcessorList([_Drawn(draws[:, 1:], sampling.temperature, device)]),
            synced_gpus=together,
        )
    tokens = output[:, 1:] if policy.is_seq2seq else output[:, ids.shape[1] :]
    return _cut(tokens, draws[:, 0], sampling)


def _cut(tokens: torch.Tensor, draws: np.ndarray, sampling: Sampling) -> Responses:
    most, least = sampling.max_new_tokens, sampling.min_limit or sampling.max_new_tokens
    limits = torch.from_numpy(least + np.floor(draws * (most - least + 1)).astype(np.int64)).to(tokens.device)
    eos = torch.tensor(sampling.eos_ids, device=tokens.device)
    lengths = response_lengths(tokens, eos, limits)
    last = tokens.gather(1, (lengths - 1)[:, None]).squeeze(1)
    tokens = torch.nn.functional.pad(tokens, (0, most - tokens.shape[1]), value=sampling.pad_id)
    beyond = torch.arange(most, device=tokens.device) >= lengths[:, None]
    return Responses(tokens.masked_fill(beyond, sampling.pad_id), lengths, torch.isin(last, eos))


class _Drawn(LogitsProcessor):
    """Draws each token by inverse transform sampling at a number that was drawn before, and leaves it as the only
    choice: logits (B, V) -> 0 at the drawn token, -inf elsewhere."""

    def __init__(self, draws: np.ndarray, temperature: float, device: torch.device) -> None:
        self._draws = torch.from_numpy(draws).to(device)
        self._temperature = temperature
        self._next = 0

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        column = min(self._next, self._draws.shape[1] - 1)
        self._next += 1
        below = torch.softmax(scores.double() / self._temperature, dim=-1).cumsum(dim=-1)
        wanted = self._draws[:, column : column + 1] * below[:, -1:]
        token = torch.searchsorted(below, wanted, right=True).clamp(max=scores.shape[1] - 1)
        return torch.full_like(scores, -torch.inf).scatter_(1, token, 0.0)


@contextmanager
def _drawing(model: Any, sampling: Sampling) -> Iterator[None]:
    """Replace the model's generation config, from which Transformers takes what a call does not set: it may penalise or
    force tokens."""
    base = base_of(model)
    own = base.generation_config
    base.generation_config = GenerationConfig(
        max_new_tokens=sampling.max_new_tokens,
        do_sample=False,
        eos_token_id=list(sampling.eos_ids),
        pad_token_id=sampling.pad_id,
        decoder_start_token_id=getattr(base.config, "decoder_start_token_id", None),
        use_cache=True,
    )
    try:
        yield
    finally:
        base.generation_config = own


def sampling_of(ppo: PPOSettings, model: Any, tokenizer: PreTrainedTokenizerBase) -> Sampling:
    """Return the config's settings, with every token that ends a text for the model or the tokenizer as an EOS."""
    ends = tuple(answer_ends(tokenizer, model))
    return Sampling(ppo.max_new_tokens, ppo.response_length_min, ppo.temperature, ends, pad_token_id(tokenizer))
