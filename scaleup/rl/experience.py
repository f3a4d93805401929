"""A rollout as PPO learns from it: what was said, what policy, value head and reference thought of it, and its score.

Each rank responds to its own prompts; then all ranks get the whole rollout. It is small (no logits), and everything
that follows (advantages, whitening, minibatches) is then the same arithmetic on every rank, whatever their number."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from scaleup.config.rl import PPOSettings
from scaleup.data.prompts import Prompt
from scaleup.distributed.runtime import Runtime
from scaleup.rl.advantages import gae, kl_estimate, response_mask, token_rewards, whiten
from scaleup.rl.rewards import Rewards, Sample
from scaleup.rl.rollout import Responses, Sampling, pad_prompts, respond


@dataclass(frozen=True)
class Experience:
    """N responses of up to T tokens, of all ranks, in the order of their prompts. On the CPU."""

    prompts: Sequence[Prompt]
    tokens: torch.Tensor
    """(N, T)"""
    lengths: torch.Tensor
    """(N,)"""
    finished: torch.Tensor
    """(N,) whether they ended by themselves."""
    logprobs: torch.Tensor
    """(N, T) at the time of the rollout; like all that follow float64, and 0 behind the response."""
    entropies: torch.Tensor
    values: torch.Tensor
    ref_logprobs: torch.Tensor
    scores: torch.Tensor
    """(N,) as they came."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Of this rank: generation, forward passes, waiting for scores."""

    @property
    def mask(self) -> torch.Tensor:
        return response_mask(self.lengths, self.tokens.shape[1])

    @property
    def log_ratio(self) -> torch.Tensor:
        """(N, T) of the policy to the reference."""
        return self.logprobs - self.ref_logprobs


@dataclass(frozen=True)
class Judged:
    """What is learned from an experience, (N, T) each; 0 behind the responses."""

    rewards: torch.Tensor
    advantages: torch.Tensor
    returns: torch.Tensor
    penalised: torch.Tensor
    """(N,) scores after clipping and the penalty for missing ends."""


def gather_experience(
    runtime: Runtime,
    model: Any,
    prompts: Sequence[Prompt],
    seeds: Sequence[Sequence[int]],
    sampling: Sampling,
    rewards: Rewards,
    sizes: tuple[int, int],
    texts: TextOf,
) -> Experience:
    """Respond to all `prompts` (of all ranks, with the seed of each), in batches of `sizes`: responses, and forward
    passes. A batch is scored while the next ones are drawn. Every rank must call it."""
    mine = list(range(runtime.rank, len(prompts), runtime.world))
    clock = Clock()
    model.eval()
    drawn: list[Responses] = []
    for start in range(0, len(mine), sizes[0]):
        chosen = mine[start : start + sizes[0]]
        runtime.progress.at("generating")
        with clock.of("generation"):
            given = [prompts[index].ids for index in chosen]
            drawn.append(
                respond(model, given, [seeds[i] for i in chosen], sampling, runtime.device, runtime.gathers_weights)
            )
        runtime.progress.at("asking for scores")
        rewards.submit(texts.samples([prompts[index] for index in chosen], drawn[-1]))
    tokens, lengths, finished = (
        torch.cat([getattr(part, name) for part in drawn]).cpu() for name in ("tokens", "lengths", "finished")
    )
    with clock.of("forward"):
        thoughts = _thoughts(runtime, model, [prompts[i].ids for i in mine], tokens, lengths, sizes[1], sampling.pad_id)
    runtime.progress.at("waiting for scores")
    with clock.of("waiting for scores"):
        scores = torch.tensor(rewards.collect(), dtype=torch.float64)
    whole = {"tokens": tokens, "lengths": lengths, "finished": finished, "scores": scores, **thoughts}
    every = {name: runtime.gather(part) for name, part in whole.items()}
    return Experience(prompts=prompts, seconds=clock.seconds, **every)


@dataclass(frozen=True)
class TextOf:
    """Token ids -> what a reward model reads."""

    tokenizer: Any

    def samples(self, prompts: Sequence[Prompt], responses: Responses) -> list[Sample]:
        rows = zip(responses.tokens.tolist(), responses.lengths.tolist(), strict=True)
        texts = self.tokenizer.batch_decode([row[:length] for row, length in rows], skip_special_tokens=True)
        ends = responses.finished.tolist()
        return [Sample(p.text, t, end, p.columns) for p, t, end in zip(prompts, texts, ends, strict=True)]


@torch.no_grad()
def _thoughts(
    runtime: Runtime,
    model: Any,
    prompts: Sequence[Sequence[int]],
    tokens: torch.Tensor,
    lengths: torch.Tensor,
    batch_size: int,
    pad_id: int,
) -> dict[str, torch.Tensor]:
    """Log-probabilities, entropies, values and the reference's log-probabilities of this rank's responses, by the same
    forward that training takes."""
    policy = getattr(model, "module", model)
    found = {name: torch.zeros(tokens.shape, dtype=torch.float64) for name in NAMES}
    for rows in by_length(prompts, lengths, batch_size):
        runtime.progress.at("forward passes over responses")
        inputs = inputs_of([prompts[row] for row in rows], tokens[rows], lengths[rows], pad_id, policy.is_seq2seq)
        inputs = {name: part.to(runtime.device) for name, part in inputs.items()}
        width = inputs["response_ids"].shape[1]
        for name, part in zip(NAMES, (*model("policy", **inputs), model("reference", **inputs)), strict=True):
            found[name][rows, :width] = part.double().cpu()
    return found


NAMES = ("logprobs", "entropies", "values", "ref_logprobs")


def inputs_of(
    prompts: Sequence[Sequence[int]], tokens: torch.Tensor, lengths: torch.Tensor, pad_id: int, is_seq2seq: bool
) -> dict[str, torch.Tensor]:
    """The arguments of a Policy for some rows, as wide as the longest of them."""
    ids, mask = pad_prompts(prompts, pad_id, left=not is_seq2seq)
    width = int(lengths.max())
    return {
        "prompt_ids": ids,
        "prompt_mask": mask,
        "response_ids": tokens[:, :width],
        "response_mask": response_mask(lengths, width),
    }


def by_length(prompts: Sequence[Sequence[int]], lengths: torch.Tensor, batch_size: int) -> Iterator[list[int]]:
    """Rows in batches of similar length: how they are batched changes nothing but the time it takes."""
    order = sorted(range(len(prompts)), key=lambda row: len(prompts[row]) + int(lengths[row]))
    for start in range(0, len(order), batch_size):
        yield order[start : start + batch_size]


def judge(experience: Experience, ppo: PPOSettings, kl_coef: float) -> Judged:
    """Rewards, advantages and returns of a rollout; whitened over all of it."""
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
    return Judged(rewards, advantages, returns, scores)


class Clock:
    """Seconds by what they were spent on."""

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
