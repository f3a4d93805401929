"""Prompts -> responses, drawn so that a response depends on its prompt, the seed and the weights, and on nothing else:
not on the process that draws it, nor on what it shares a batch with."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, PreTrainedTokenizerBase

from scaleup.config.rl import PPOSettings
from scaleup.models.load import pad_token_id
from scaleup.rl.advantages import response_lengths
from scaleup.rl.policy import base_of


@dataclass(frozen=True)
class Responses:
    """B responses of up to T tokens."""

    tokens: torch.Tensor
    """(B, T), padded with the pad token."""
    lengths: torch.Tensor
    """(B,) with the EOS."""
    finished: torch.Tensor
    """(B,) whether they end with an EOS."""


@dataclass(frozen=True)
class Sampling:
    """How responses are drawn: from the whole distribution at a temperature. (Cutting it off by top-k or top-p would
    make the ratio of probabilities wrong.)"""

    max_new_tokens: int
    min_limit: int | None
    """Draw each response's limit evenly between this and max_new_tokens."""
    temperature: float
    eos_ids: tuple[int, ...]
    pad_id: int


def pad_prompts(prompts: Sequence[Sequence[int]], pad_id: int, left: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """(B, P) ids and mask. Causal models' prompts are padded on the left, so that all responses start in one column; an
    encoder's on the right, where T5's relative positions count from the start."""
    width = max(len(prompt) for prompt in prompts)
    ids = torch.full((len(prompts), width), pad_id)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        place = slice(width - len(prompt), width) if left else slice(0, len(prompt))
        ids[row, place] = torch.tensor(prompt)
        mask[row, place] = 1
    return ids, mask


def draws_of(seed: Sequence[int], count: int) -> np.ndarray:
    """(count,) uniform numbers in [0, 1) that belong to this seed alone."""
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
    """Of a (wrapped) Policy in evaluation mode; each prompt (token ids) with the seed of its own draws. `together`: all
    ranks generate as many tokens, which those need that gather weights for every one."""
    policy = getattr(model, "module", model)
    ids, mask = pad_prompts(prompts, sampling.pad_id, left=not policy.is_seq2seq)
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
    """Draws the token itself, by inverting the distribution function at a number that was drawn before, and leaves no
    other choice to what comes after."""

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
    """Transformers fills a generation's settings up from the model's own, which may penalise or force tokens."""
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
    """As the config says, until any of the tokens that the model or the tokenizer calls an end."""
    named = model.generation_config.eos_token_id
    ends = {tokenizer.eos_token_id, *(named if isinstance(named, list) else [named])} - {None}
    return Sampling(
        ppo.max_new_tokens, ppo.response_length_min, ppo.temperature, tuple(sorted(ends)), pad_token_id(tokenizer)
    )
