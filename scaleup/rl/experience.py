"""Prompts go in; a rollout as PPO learns from it comes out: responses, their log-probabilities under policy and
reference, values and scores.

Each rank responds to its own prompts; then all ranks get the whole rollout. It is small (no logits), and everything
that follows (advantages, whitening, minibatches) is then the same arithmetic on every rank, whatever their number."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch

from scaleup.config.stages.ppo import PPOSettings
from scaleup.data.collate import has_padding, pad
from scaleup.data.prompts import Prompt
from scaleup.distributed.runtime import Runtime
from scaleup.models.beside import unwrap
from scaleup.models.generation import answer_texts
from scaleup.models.padding import padding_known
from scaleup.models.rollout import Responses, Sampling, respond
from scaleup.rl.advantages import gae, kl_estimate, response_mask, token_rewards, whiten
from scaleup.rl.rewards.interface import Rewards, Sample


@dataclass(frozen=True)
class Experience:
    """Holds N responses of up to T tokens, of all ranks, in the order of their prompts. All are on the CPU."""

    prompts: Sequence[Prompt]
    tokens: torch.Tensor
    """Holds token ids (N, T)."""
    lengths: torch.Tensor
    """Counts the tokens (N,) of each response."""
    finished: torch.Tensor
    """Tells (N,) whether responses end with an EOS."""
    logprobs: torch.Tensor
    """Holds log-probabilities (N, T) under the policy at the time of the rollout, in nats; like all that follow
    float64, and 0 behind the response."""
    entropies: torch.Tensor
    """Holds entropies (N, T) of the policy's distribution at each token, in nats."""
    values: torch.Tensor
    """Holds values (N, T) of the state before each token."""
    ref_logprobs: torch.Tensor
    """Holds log-probabilities (N, T) under the reference, in nats."""
    scores: torch.Tensor
    """Holds scores (N,) of the reward model, before clipping and penalties."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Holds the seconds that this rank spent on generation, forward passes and waiting for scores."""

    @property
    def mask(self) -> torch.Tensor:
        """Return a mask (N, T), true on a response's tokens."""
        return response_mask(self.lengths, self.tokens.shape[1])

    @property
    def log_ratio(self) -> torch.Tensor:
        """Return (N, T) log pi(token) - log pi_ref(token), in nats."""
        return self.logprobs - self.ref_logprobs


@dataclass(frozen=True)
class Advantages:
    """Holds what PPO learns from an experience; 0 behind the responses."""

    rewards: torch.Tensor
    """Holds token rewards (N, T): the score at the last token, minus the KL penalty at each."""
    advantages: torch.Tensor
    """Holds advantages (N, T), whitened where the config says so."""
    returns: torch.Tensor
    """Holds targets (N, T) of the values: advantages before whitening, plus values."""
    scores: torch.Tensor
    """Holds scores (N,) after clipping and the penalty for a missing EOS."""


@dataclass(frozen=True)
class ExperienceMaker:
    """Turns prompts into experience: responses of the policy, their scores, log-probabilities and values."""

    runtime: Runtime
    model: Any
    """Is a Policy under the run's strategy."""
    tokenizer: Any
    sampling: Sampling
    rewards: Rewards
    generation_batch_size: int
    """Counts the prompts that a rank responds to, and has scored, at a time."""
    forward_batch_size: int
    """Counts the responses of a forward pass."""

    def make(self, prompts: Sequence[Prompt], seeds: Sequence[Sequence[int]]) -> Experience:
        """Respond to the N prompts of all ranks, each with a seed of its own. A batch is scored while the next ones are
        drawn. Every rank must call it, with the same prompts."""
        own = list(range(self.runtime.rank, len(prompts), self.runtime.world))
        progress, clock = self.runtime.progress, Clock()
        self.model.eval()
        policy, device, drawn = unwrap(self.model), self.runtime.device, []
        progress.enter_phase("generating")
        with ExitStack() as stack:
            with clock.of("generation"):  # gathering weights is part of it
                together = stack.enter_context(self.runtime.generating(self.model, policy.policy))
            for start in range(0, len(own), self.generation_batch_size):
                rows = own[start : start + self.generation_batch_size]
                progress.enter_phase("generating")
                with clock.of("generation"):
                    ids, own_seeds = [prompts[row].ids for row in rows], [seeds[row] for row in rows]
                    drawn.append(respond(self.model, ids, own_seeds, self.sampling, device, together))
                progress.enter_phase("asking for scores")
                chosen = [prompts[row] for row in rows]
                read = samples_of(self.tokenizer, chosen, drawn[-1], self.sampling.eos_ids, policy.is_seq2seq)
                self.rewards.submit(read)
        tokens, lengths, finished = (
            torch.cat([getattr(part, name) for part in drawn]).cpu() for name in ("tokens", "lengths", "finished")
        )
        with clock.of("forward"):
            computed = self._logprobs_and_values([prompts[row].ids for row in own], tokens, lengths)
        progress.enter_phase("waiting for scores")
        with clock.of("waiting for scores"):
            scores = torch.tensor(self.rewards.collect(), dtype=torch.float64)
        own_rows = {"tokens": tokens, "lengths": lengths, "finished": finished, "scores": scores, **computed}
        every = {name: self.runtime.gather(part) for name, part in own_rows.items()}
        return Experience(prompts=prompts, seconds=clock.seconds, **every)

    @torch.no_grad()
    def _logprobs_and_values(
        self, prompts: Sequence[Sequence[int]], tokens: torch.Tensor, lengths: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """Return log-probabilities, entropies, values and the reference's log-probabilities of this rank's n responses,
        (n, T) each, by the same forward pass that training takes. Given are tokens (n, T) and lengths (n,)."""
        policy = unwrap(self.model)
        computed = {name: torch.zeros(tokens.shape, dtype=torch.float64) for name in NAMES}
        for rows in by_length(prompts, lengths, self.forward_batch_size):
            self.runtime.progress.enter_phase("forward passes over responses")
            own = [prompts[row] for row in rows]
            inputs = inputs_of(own, tokens[rows], lengths[rows], self.sampling.pad_id, policy.is_seq2seq)
            is_padded = is_padded_for(policy, inputs)
            inputs = {name: part.to(self.runtime.device) for name, part in inputs.items()}
            width = inputs["response_ids"].shape[1]
            with padding_known(is_padded):
                stats = torch.stack([*self.model("policy", **inputs), self.model("reference", **inputs)]).double().cpu()
            for name, part in zip(NAMES, stats, strict=True):
                computed[name][rows, :width] = part
        return computed


def samples_of(
    tokenizer: Any, prompts: Sequence[Prompt], responses: Responses, eos_ids: Sequence[int], is_seq2seq: bool = False
) -> list[Sample]:
    """Return what a reward model reads: a sample each of B responses, with the text that was written behind the prompt,
    without special tokens."""
    rows = zip(responses.tokens.tolist(), responses.lengths.tolist(), strict=True)
    before = None if is_seq2seq else [prompt.ids for prompt in prompts]
    texts = answer_texts(tokenizer, before, [row[:length] for row, length in rows], eos_ids)
    ends = responses.finished.tolist()
    return [Sample(p.text, t, end, p.columns, p.chat) for p, t, end in zip(prompts, texts, ends, strict=True)]


NAMES = ("logprobs", "entropies", "values", "ref_logprobs")


def inputs_of(
    prompts: Sequence[Sequence[int]], tokens: torch.Tensor, lengths: torch.Tensor, pad_id: int, is_seq2seq: bool
) -> dict[str, torch.Tensor]:
    """Return the arguments of a Policy for B rows: prompt_ids and prompt_mask (B, P), response_ids and response_mask
    (B, T), as wide as the longest of them, and response_places (N,): where the mask is true, laid out row by row, which
    the host knows. All are on the CPU."""
    ids, mask = pad(prompts, pad_id, left=not is_seq2seq)
    width = int(lengths.max())
    in_response = response_mask(lengths, width)
    return {
        "prompt_ids": ids,
        "prompt_mask": mask,
        "response_ids": tokens[:, :width],
        "response_mask": in_response,
        "response_places": in_response.flatten().nonzero().squeeze(1),
    }


def is_padded_for(policy: Any, inputs: Mapping[str, torch.Tensor]) -> bool | None:
    """Return whether the mask that the policy's model gets has padding: of an encoder-decoder, the encoder's."""
    return has_padding(inputs["prompt_mask"], None if policy.is_seq2seq else inputs["response_mask"])


def by_length(prompts: Sequence[Sequence[int]], lengths: torch.Tensor, batch_size: int) -> Iterator[list[int]]:
    """Return row numbers in batches of similar length: how rows are batched changes nothing but the time it takes."""
    order = sorted(range(len(prompts)), key=lambda row: len(prompts[row]) + int(lengths[row]))
    for start in range(0, len(order), batch_size):
        yield order[start : start + batch_size]


def compute_advantages(experience: Experience, ppo: PPOSettings, kl_coef: float) -> Advantages:
    """Return token rewards, advantages and returns of a rollout by `token_rewards` and `gae`, whitened over all its
    rows."""
    mask, scores = experience.mask, experience.scores
    if ppo.reward_clip is not None:
        scores = scores.clamp(-ppo.reward_clip, ppo.reward_clip)
    if ppo.missing_eos_penalty is not None:
        scores = torch.where(experience.finished, scores, scores - ppo.missing_eos_penalty)
    penalties = kl_coef * kl_estimate(experience.log_ratio, ppo.kl_estimator)
    rewards = token_rewards(scores, penalties, mask)
    counted = whiten(rewards, mask, shift_mean=False) if ppo.whiten_rewards else rewards
    advantages, returns = gae(counted, experience.values, mask, ppo.gamma, ppo.lam)
    if ppo.whiten_advantages:
        advantages = whiten(advantages, mask)
    return Advantages(rewards, advantages, returns, scores)


class Clock:
    """Sums seconds by what they were spent on."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def of(self, what: str) -> Clock:
        self._what = what
        return self

    def __enter__(self) -> None:
        self._start = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        spent = time.perf_counter() - self._start
        self.seconds[self._what] = self.seconds.get(self._what, 0.0) + spent
