"""Prompts go in; a rollout to learn from comes out: responses, their log-probabilities under policy and reference,
values and scores.

Each rank responds to its own prompts; then all ranks get the whole rollout. It is small (no logits), and everything
that follows (advantages, whitening, minibatches) is then the same arithmetic on every rank, whatever their number."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal

import torch

from scaleup.artifacts.timeline import UNNOTED, Timeline
from scaleup.config.algorithms import PolicyGradient, RolloutSettings
from scaleup.data.collate import has_padding, pad
from scaleup.data.prompts import Prompt
from scaleup.distributed.runtime import Runtime
from scaleup.models.beside import unwrap
from scaleup.models.generation import answer_texts
from scaleup.models.padding import padding_known
from scaleup.models.rollout import Responses, Sampling
from scaleup.rl.advantages import kl_estimate, normalized_sum, overlong_penalty, response_mask, token_rewards
from scaleup.rl.algorithms import Algorithm, Estimates
from scaleup.rl.algorithms.interface import Rollout
from scaleup.rl.generators import Generator
from scaleup.rl.losses import level_ratio
from scaleup.rl.rewards.interface import RewardSet, Sample


@dataclass(frozen=True)
class Greedy:
    """Holds what is known of the greedy response to each of N prompts."""

    scores: torch.Tensor
    """Holds the rewards' weighted sum (N,)."""
    lengths: torch.Tensor
    """Counts the tokens (N,) of each response."""
    finished: torch.Tensor
    """Tells (N,) whether responses end with an EOS."""

    def repeated(self, times: int) -> Greedy:
        """Return it with each row so often, side by side: once for each response to the prompt."""
        return Greedy(**_tensors(lambda part: part.repeat_interleave(times), self))


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
    by_source: dict[str, torch.Tensor]
    """Maps the name of each reward -> its scores (N,)."""
    scores: torch.Tensor
    """Holds the rewards' weighted sum (N,), before clipping and penalties."""
    logprobs: torch.Tensor | None = None
    """Holds log-probabilities (N, T) under the policy at the time of the rollout, in nats; like all that follow
    float64, and 0 behind the response. None where the one step that learns from the rollout computes them anyway."""
    entropies: torch.Tensor | None = None
    """Holds entropies (N, T) of the policy's distribution at each token, in nats; None where `logprobs` is."""
    values: torch.Tensor | None = None
    """Holds values (N, T) of the state before each token, where the algorithm learns some."""
    ref_logprobs: torch.Tensor | None = None
    """Holds log-probabilities (N, T) under the reference, in nats, where there is one."""
    greedy: Greedy | None = None
    """Tells of the greedy response to each prompt, where the algorithm needs it."""
    sampling_logprobs: torch.Tensor | None = None
    """Holds log-probabilities (N, T), in nats, by which an engine of its own drew the tokens."""
    importance: torch.Tensor | None = None
    """Holds weights (N, T) of tokens in the loss, where that engine's probabilities are not the policy's."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Holds the seconds that this rank spent on generation, forward passes and waiting for scores."""

    @property
    def mask(self) -> torch.Tensor:
        """Return a mask (N, T), true on a response's tokens."""
        return response_mask(self.lengths, self.tokens.shape[1])

    @property
    def log_ratio(self) -> torch.Tensor:
        """Return (N, T) log pi(token) - log pi_ref(token), in nats; 0 where there is no reference, or where nobody has
        computed the policy's own."""
        if self.logprobs is None or self.ref_logprobs is None:
            return torch.zeros(self.tokens.shape, dtype=torch.float64)
        return self.logprobs - self.ref_logprobs

    def rows(self, places: Sequence[int]) -> Experience:
        """Return the responses at some places, in that order."""
        at = torch.tensor(places)
        prompts = [self.prompts[place] for place in places]
        return replace(self, prompts=prompts, **_tensors(lambda part: part[at], self))

    def joined(self, other: Experience) -> Experience:
        """Return the responses of this one, then those of the other."""
        seconds = {name: spent + other.seconds[name] for name, spent in self.seconds.items()}
        parts = _tensors(lambda *parts: torch.cat(parts), self, other)
        return replace(self, prompts=[*self.prompts, *other.prompts], seconds=seconds, **parts)


def _tensors(change: Callable[..., torch.Tensor], *of: Any) -> dict[str, Any]:
    """Return what `change` makes of each tensor of one or several objects of a class, by field."""
    parts: dict[str, Any] = {}
    for each in fields(of[0]):
        first, *others = values = [getattr(one, each.name) for one in of]
        if isinstance(first, torch.Tensor):
            parts[each.name] = change(*values)
        elif isinstance(first, Greedy):
            parts[each.name] = Greedy(**_tensors(change, *values))
        elif each.name == "by_source":
            parts[each.name] = {name: change(part, *(other[name] for other in others)) for name, part in first.items()}
    return parts


@dataclass(frozen=True)
class ExperienceMaker:
    """Turns prompts into experience: responses of the policy, their scores, log-probabilities and values."""

    runtime: Runtime
    model: Any
    """Is a Policy under the run's strategy."""
    tokenizer: Any
    sampling: Sampling
    rewards: RewardSet
    generator: Generator
    forward_batch_size: int
    """Counts the responses of a forward pass."""
    level: Literal["token", "sequence", "trajectory"] = "token"
    """Says whose probabilities an importance weight is of, as the ratio of the loss is."""
    timeline: Timeline = UNNOTED
    of_policy: bool = True
    """Tells whether the policy's own log-probabilities, entropies and values are computed, too."""

    def make(self, prompts: Sequence[Prompt], seeds: Sequence[Sequence[int]]) -> Experience:
        """Respond to the N prompts of all ranks, each with a seed of its own. A batch is scored while the next ones are
        drawn. Every rank must call it, with the same prompts."""
        own = list(range(self.runtime.rank, len(prompts), self.runtime.world))
        clock = Clock(self.timeline)
        drawn, sampling_logprobs = self._responses(prompts, seeds, self.sampling, clock)
        with clock.of("forward"):
            ids = [prompts[row].ids for row in own]
            computed = self.log_probabilities(ids, drawn.tokens, drawn.lengths, self.of_policy)
        scores = self._scores(clock)
        own_rows = {"tokens": drawn.tokens, "lengths": drawn.lengths, "finished": drawn.finished, **computed}
        if sampling_logprobs is not None:
            own_rows["sampling_logprobs"] = sampling_logprobs
        every = {name: self.runtime.gather(part) for name, part in own_rows.items()}
        by_source = {name: self.runtime.gather(part) for name, part in scores.items()}
        parts: dict[str, Any] = {**every, "by_source": by_source, "scores": self.rewards.weighted(by_source)}
        if sampling_logprobs is not None:
            width = every["tokens"].shape[1]
            off, mask = every["logprobs"] - every["sampling_logprobs"], response_mask(every["lengths"], width)
            parts["importance"] = self.generator.importance(level_ratio(off, mask, self.level).expand_as(off))
        return Experience(prompts=prompts, seconds=clock.seconds, **parts)

    def greedy(self, prompts: Sequence[Prompt]) -> Greedy:
        """Respond greedily to the N prompts of all ranks. Every rank must call it, with the same prompts."""
        filled = [*prompts, *[prompts[-1]] * (-len(prompts) % self.runtime.world)]  # every rank has as many
        clock, sampling = Clock(self.timeline), replace(self.sampling, is_greedy=True, min_limit=None)
        drawn, _ = self._responses(filled, [(0,)] * len(filled), sampling, clock)
        scores = {name: self.runtime.gather(part) for name, part in self._scores(clock).items()}
        parts = (self.rewards.weighted(scores), self.runtime.gather(drawn.lengths), self.runtime.gather(drawn.finished))
        return Greedy(*(part[: len(prompts)] for part in parts))

    def _responses(
        self, prompts: Sequence[Prompt], seeds: Sequence[Sequence[int]], sampling: Sampling, clock: Clock
    ) -> tuple[Responses, torch.Tensor | None]:
        """Return this rank's share of the responses to N prompts, on the CPU, and the log-probabilities (n, T) by which
        an engine of its own drew them; they are on their way to be scored."""
        self.model.eval()
        progress, is_seq2seq, every = self.runtime.progress, unwrap(self.model).is_seq2seq, []
        with closing(self.generator.batches([prompt.ids for prompt in prompts], seeds, sampling)) as batches:
            while True:
                progress.enter_phase("generating")
                with clock.of("generation"):  # gathering weights is part of it
                    drawn = next(batches, None)
                if drawn is None:
                    break
                every.append(drawn)
                progress.enter_phase("asking for scores")
                chosen = [prompts[row] for row in drawn.rows]
                self.rewards.submit(samples_of(self.tokenizer, chosen, drawn.responses, sampling.eos_ids, is_seq2seq))
        names = ("tokens", "lengths", "finished")
        joined = (torch.cat([getattr(each.responses, name) for each in every]).cpu() for name in names)
        logprobs = [each.logprobs for each in every if each.logprobs is not None]
        return Responses(*joined), torch.cat(logprobs) if logprobs else None

    def _scores(self, clock: Clock) -> dict[str, torch.Tensor]:
        """Return the scores (n,) of this rank's responses by each reward, float64."""
        self.runtime.progress.enter_phase("waiting for scores")
        with clock.of("waiting for scores"):
            collected = self.rewards.collect()
        return {name: torch.tensor(scores, dtype=torch.float64) for name, scores in collected.items()}

    @torch.no_grad()
    def log_probabilities(
        self, prompts: Sequence[Sequence[int]], tokens: torch.Tensor, lengths: torch.Tensor, of_policy: bool = True
    ) -> dict[str, torch.Tensor]:
        """Return log-probabilities and entropies of this rank's n responses, (n, T) each, by the same forward pass that
        training takes; values and the reference's log-probabilities where the policy has them; the latter alone unless
        `of_policy`. Given are tokens (n, T) and lengths (n,)."""
        policy = unwrap(self.model)
        names = ["logprobs", "entropies", *(["values"] if policy.has_values else [])] if of_policy else []
        names += ["ref_logprobs"] if policy.has_reference else []
        if not names:
            return {}
        computed = {name: torch.zeros(tokens.shape, dtype=torch.float64) for name in names}
        for rows in by_length(prompts, lengths, self.forward_batch_size):
            self.runtime.progress.enter_phase("forward passes over responses")
            own = [prompts[row] for row in rows]
            inputs = inputs_of(own, tokens[rows], lengths[rows], self.sampling.pad_id, policy.is_seq2seq)
            is_padded = is_padded_for(policy, inputs)
            inputs = {name: part.to(self.runtime.device) for name, part in inputs.items()}
            width = inputs["response_ids"].shape[1]
            with padding_known(is_padded):
                parts = [part for part in self.model("policy", **inputs) if part is not None] if of_policy else []
                parts += [self.model("reference", **inputs)] if policy.has_reference else []
                stats = torch.stack(parts).double().cpu()
            for name, part in zip(names, stats, strict=True):
                computed[name][rows, :width] = part
        return computed


def samples_of(
    tokenizer: Any, prompts: Sequence[Prompt], responses: Responses, eos_ids: Sequence[int], is_seq2seq: bool = False
) -> list[Sample]:
    """Return what a reward model reads: a sample each of B responses, with the text that was written behind the prompt,
    without special tokens."""
    rows = zip(responses.tokens.tolist(), responses.lengths.tolist(), strict=True)
    before = None if is_seq2seq else [prompt.ids for prompt in prompts]
    ids = [row[:length] for row, length in rows]
    texts = answer_texts(tokenizer, before, ids, eos_ids)
    drawn = zip(prompts, texts, responses.finished.tolist(), ids, strict=True)
    return [Sample(each.text, text, end, each.columns, each.chat, own) for each, text, end, own in drawn]


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


def compute_advantages(
    experience: Experience, algorithm: Algorithm, rollouts: RolloutSettings, weights: Sequence[float], kl_coef: float
) -> Estimates:
    """Return token rewards and an algorithm's advantages of a rollout, over all its rows. `weights` are those of its
    rewards."""
    settings, mask, scores = algorithm.settings, experience.mask, experience.scores
    if settings.combine == "normalized_sum":
        scores = normalized_sum(list(experience.by_source.values()), weights, settings.num_generations)
    scores = shaped_scores(scores, experience, settings, rollouts.max_new_tokens)
    penalties = torch.zeros(mask.shape, dtype=torch.float64)
    if settings.kl_in == "reward":
        penalties = kl_coef * kl_estimate(experience.log_ratio, settings.kl_estimator)
    rewards, greedy = token_rewards(scores, penalties, mask), experience.greedy
    baseline = None
    if greedy is not None:
        baseline = shaped_scores(greedy.scores, greedy, settings, rollouts.max_new_tokens)
    advantages, returns = algorithm.advantages(Rollout(rewards, mask, scores, experience.values, baseline))
    return Estimates(rewards, advantages, returns, scores)


def shaped_scores(
    scores: torch.Tensor, of: Experience | Greedy, settings: PolicyGradient, max_new_tokens: int
) -> torch.Tensor:
    """Return scores (N,) of responses after clipping, and less the penalties of a missing EOS and of length."""
    if settings.reward_clip is not None:
        scores = scores.clamp(-settings.reward_clip, settings.reward_clip)
    if settings.missing_eos_penalty is not None:
        scores = torch.where(of.finished, scores, scores - settings.missing_eos_penalty)
    if settings.soft_punish_cache is not None:
        scores = scores - overlong_penalty(of.lengths, max_new_tokens, settings.soft_punish_cache)
    return scores


class Clock:
    """Sums seconds by what they were spent on, and notes each span."""

    def __init__(self, timeline: Timeline) -> None:
        self.seconds: dict[str, float] = {}
        self._timeline = timeline

    def of(self, what: str) -> Clock:
        self._what = what
        return self

    def __enter__(self) -> None:
        self._span = self._timeline.span(self._what)
        self._span.__enter__()
        self._start = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        spent = time.perf_counter() - self._start
        self.seconds[self._what] = self.seconds.get(self._what, 0.0) + spent
        self._span.__exit__(None, None, None)
