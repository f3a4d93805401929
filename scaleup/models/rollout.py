"""Prompts go in; responses come out. A response depends on its prompt, its seed and the weights alone: neither on the
process that draws it, nor on the other rows of its batch."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import GenerationConfig, PreTrainedTokenizerBase

from scaleup.data.chat import answer_ends
from scaleup.data.collate import has_padding, pad
from scaleup.models.beside import Beside, base_of, unwrap
from scaleup.models.decode import Decoder, likeliest
from scaleup.models.gumbel import GumbelMax
from scaleup.models.load import pad_token_id
from scaleup.models.padding import padding_known

HELD_OUT = 2**31
"""Stands for the rollout's number in the seeds of held-out responses, which are the same in every evaluation."""


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
    """Holds the settings of generation. Reinforcement learning draws from the whole distribution at a temperature: with
    top-k or top-p the ratio of probabilities would be wrong."""

    max_new_tokens: int
    min_limit: int | None
    """Bounds responses from below, in tokens. If given, each response's limit is drawn uniformly between this and
    max_new_tokens."""
    temperature: float
    eos_ids: tuple[int, ...]
    pad_id: int
    top_p: float = 1.0
    suppressed: tuple[int, ...] = ()
    """Holds the ids that are never drawn."""
    is_greedy: bool = False
    """Tells whether each token is the likeliest one, whatever the seeds."""


@torch.no_grad()
def respond(
    model: Any,
    prompts: Sequence[Sequence[int]],
    seeds: Sequence[Sequence[int]],
    sampling: Sampling,
    device: torch.device,
    together: bool = False,
) -> Responses:
    """Return the responses of the trained part of a (wrapped) module in evaluation mode to B prompts (token ids), each
    with a seed of its own. The module's forward takes a role, of which "generate" is Transformers' `generate`.
    `together`: all ranks generate equally many tokens, as ranks must that gather weights for each of them."""
    whole: Beside = unwrap(model)
    is_seq2seq = bool(base_of(whole.trained).config.is_encoder_decoder)
    ids, mask = pad(prompts, sampling.pad_id, left=not is_seq2seq)
    limits = torch.tensor(limits_of(seeds, sampling), device=device)
    temperature = sampling.temperature if sampling.top_p == 1 else 1.0
    draw = likeliest if sampling.is_greedy else GumbelMax.seeded(seeds, device, temperature)
    with _drawing(whole.trained, sampling), padding_known(has_padding(mask)):
        output = (model if together else whole)(
            "generate",
            input_ids=ids.to(device),
            attention_mask=mask.to(device),
            custom_generate=Decoder(draw, limits, together),
        )
    tokens = output[:, 1:] if is_seq2seq else output[:, ids.shape[1] :]
    return _cut(tokens, limits, sampling)


def limits_of(seeds: Sequence[Sequence[int]], sampling: Sampling) -> list[int]:
    """Return the most tokens of each response, which depend on its seed alone."""
    most, least = sampling.max_new_tokens, sampling.min_limit or sampling.max_new_tokens
    return [least + math.floor(np.random.default_rng(list(seed)).random() * (most - least + 1)) for seed in seeds]


def _cut(tokens: torch.Tensor, limits: torch.Tensor, sampling: Sampling) -> Responses:
    most = sampling.max_new_tokens
    eos = torch.tensor(sampling.eos_ids, device=tokens.device)
    lengths = response_lengths(tokens, eos, limits)
    last = tokens.gather(1, (lengths - 1)[:, None]).squeeze(1)
    tokens = torch.nn.functional.pad(tokens, (0, most - tokens.shape[1]), value=sampling.pad_id)
    beyond = torch.arange(most, device=tokens.device) >= lengths[:, None]
    return Responses(tokens.masked_fill(beyond, sampling.pad_id), lengths, torch.isin(last, eos))


def response_lengths(tokens: torch.Tensor, eos_ids: torch.Tensor, limits: torch.Tensor) -> torch.Tensor:
    """Return the number of tokens (B,) of each response: up to its first EOS, which counts, or its limit.

    tokens (B, T): what was generated, with any padding after the EOS; eos_ids (E,); limits (B,)."""
    is_eos = torch.isin(tokens, eos_ids)
    first = torch.where(is_eos.any(dim=1), is_eos.int().argmax(dim=1) + 1, tokens.shape[1])
    return torch.minimum(first, limits)


@contextmanager
def _drawing(model: Any, sampling: Sampling) -> Iterator[None]:
    """Replace the model's generation config, from which Transformers takes what a call does not set: it may penalise or
    force tokens."""
    base = base_of(model)
    own = base.generation_config
    drawn: dict[str, Any] = {"do_sample": False}
    if sampling.top_p < 1:  # of the distribution at the temperature
        drawn = {"do_sample": True, "temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": 0}
    base.generation_config = GenerationConfig(
        max_new_tokens=sampling.max_new_tokens,
        eos_token_id=list(sampling.eos_ids),
        pad_token_id=sampling.pad_id,
        decoder_start_token_id=getattr(base.config, "decoder_start_token_id", None),
        suppress_tokens=list(sampling.suppressed) or None,
        use_cache=True,
        **drawn,
    )
    try:
        yield
    finally:
        base.generation_config = own


def sampling_of(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    max_new_tokens: int,
    temperature: float,
    min_limit: int | None = None,
    top_p: float = 1.0,
    suppressed: tuple[int, ...] = (),
) -> Sampling:
    """Return the settings, with every token that ends a text for the model or the tokenizer as an EOS."""
    ends = tuple(answer_ends(tokenizer, model))
    return Sampling(max_new_tokens, min_limit, temperature, ends, pad_token_id(tokenizer), top_p, suppressed)


def response_seeds(seed: int, rollout: int, size: int, first: int = 0) -> Sequence[Sequence[int]]:
    """Return the seeds of `size` responses of a rollout, one each, after the `first` ones."""
    return [(seed, 0, rollout, row) for row in range(first, first + size)]
