"""This module names the metrics of a rollout: after TRL's GRPO trainer, and for `stage: ppo` after its PPO trainer.

Means are over responses; where a name says so, over tokens or prompts. KL and entropy are in nats."""

from __future__ import annotations

import torch

from scaleup.rl.advantages import whole_rollout_spread
from scaleup.rl.algorithms import Estimates
from scaleup.rl.experience import Experience


def rollout_metrics(
    experience: Experience, estimates: Estimates, num_generations: int, kl_coef: float
) -> dict[str, float]:
    """Return what is known of a rollout before it is learned from, under the names of TRL's GRPO trainer."""
    lengths, tokens, scores = experience.lengths.double(), experience.mask.sum(), experience.scores
    named = {f"rewards/{name}": values for name, values in experience.by_source.items()}
    values = {
        "reward": float(scores.mean()),
        "reward_std": float(whole_rollout_spread(scores)),
        **{f"{name}/mean": float(values.mean()) for name, values in named.items()},
        **{f"{name}/std": float(whole_rollout_spread(values)) for name, values in named.items()},
        "kl": float(experience.log_ratio.sum() / tokens),
        "kl_response": float(experience.log_ratio.sum(dim=1).mean()),
        "kl_coef": kl_coef,
        "completions/mean_length": float(lengths.mean()),
        "completions/min_length": float(lengths.min()),
        "completions/max_length": float(lengths.max()),
        "completions/clipped_ratio": float((~experience.finished).double().mean()),
    }
    if experience.ref_logprobs is None:
        del values["kl"], values["kl_response"], values["kl_coef"]
    if experience.entropies is not None:
        values["entropy"] = float(experience.entropies.sum() / tokens)
    if num_generations > 1:
        values["frac_reward_zero_std"] = float(equal_groups(scores, num_generations).double().mean())
    if experience.values is not None:
        values["values/mean"] = float(experience.values.sum() / tokens)
    if experience.greedy is not None:
        values["reward_greedy"] = float(experience.greedy.scores.mean())
    return values | _seconds(experience)


EQUAL = 1e-8
"""Is the spread of a prompt's scores below which they count as equal."""


def update_metrics(learned: dict[str, float]) -> dict[str, float]:
    """Return what an update tells, under the names of TRL's GRPO trainer."""
    names = {
        "policy": "loss/policy",
        "value": "loss/value",
        "kl": "loss/kl",
        "supervised": "loss/supervised",
        "clipped": "clip_ratio/region_mean",
        "clipped_low": "clip_ratio/low_mean",
        "clipped_high": "clip_ratio/high_mean",
        "value_clipped": "clip_ratio/value_mean",
        "approxkl": "approxkl",
        "ratio": "ratio",
        "grad_norm": "grad_norm",
        "learning_rate": "learning_rate",
    }
    return {name: learned[key] for key, name in names.items() if key in learned}


def late_metrics(experience: Experience, learned: dict[str, float]) -> dict[str, float]:
    """Return what is known of a rollout only by the one step that learned from it, under the same names."""
    values = {"entropy": learned["entropy"]}
    if experience.ref_logprobs is not None:
        of_token = learned["log_ratio_to_reference"]
        values |= {"kl": of_token, "kl_response": of_token * float(experience.lengths.double().mean())}
    return values


def ppo_rollout_metrics(
    experience: Experience, estimates: Estimates, num_generations: int, kl_coef: float
) -> dict[str, float]:
    """Return what is known of a rollout before it is learned from, under the names of TRL's PPO trainer."""
    mask, lengths = experience.mask, experience.lengths.double()
    assert estimates.returns is not None and experience.values is not None and experience.entropies is not None
    non_score = estimates.rewards.sum(dim=1) - estimates.scores
    tokens = mask.sum()
    return {
        "objective/kl": float(experience.log_ratio.sum(dim=1).mean()),
        "objective/kl_coef": kl_coef,
        "objective/entropy": float(experience.entropies.sum(dim=1).mean()),
        "objective/scores": float(experience.scores.mean()),
        "objective/scores_std": float(experience.scores.std(unbiased=False)),
        "objective/non_score_reward": float(non_score.mean()),
        "objective/rlhf_reward": float(estimates.rewards.sum(dim=1).mean()),
        "ppo/returns/mean": float(estimates.returns.sum() / tokens),
        "ppo/returns/var": float(estimates.returns[mask].var(unbiased=False)),
        "ppo/policy/advantages_mean": float(estimates.advantages.sum() / tokens),
        "ppo/val/mean": float(experience.values.sum() / tokens),
        "response/length_mean": float(lengths.mean()),
        "response/length_max": float(lengths.max()),
        "response/eos_share": float(experience.finished.double().mean()),
        **_seconds(experience),
    }


def ppo_update_metrics(learned: dict[str, float]) -> dict[str, float]:
    """Return what an update tells, under the names of TRL's PPO trainer."""
    names = {
        "policy": "ppo/loss/policy",
        "value": "ppo/loss/value",
        "clipped": "ppo/policy/clipfrac",
        "value_clipped": "ppo/val/clipfrac",
        "approxkl": "ppo/policy/approxkl",
        "entropy": "ppo/policy/entropy",
        "ratio": "ppo/val/ratio",
        "grad_norm": "grad_norm",
        "learning_rate": "learning_rate",
    }
    return {name: learned[key] for key, name in names.items()}


def _seconds(experience: Experience) -> dict[str, float]:
    return {f"time/{what.replace(' ', '_')}": seconds for what, seconds in experience.seconds.items()}


def equal_groups(scores: torch.Tensor, num_generations: int) -> torch.Tensor:
    """Return (P,) whether the scores (P x G,) of each prompt's G responses are equal: nothing can be learned from
    them."""
    return scores.view(-1, num_generations).std(dim=1) < EQUAL
