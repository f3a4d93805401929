"""A config of reinforcement learning goes in; the equalities of its rollouts come out: where rewards are computed, what
draws the tokens, and what holds before the first step."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from scaleup.artifacts.metrics_log import logged_values
from scaleup.config.run import RunConfig
from scaleup.config.stages.base import TrainingConfig
from scaleup.studies.verify.equalities import ROLLOUT_TOLERANCE, Equality, TwinRun, alike, rollouts_apart

CHECKED = "what float32 rounds between one batch and another, in nats a token: scaleup/rl/checks.py"
DRAWN = "each token's noise follows from its seed and place: tests/vllm/test_engine.py"
TOLERANCE_OF_CHECKS = 1e-4
KL, EQUAL_TOKENS = ("kl_response", "objective/kl"), "sampling/equal_tokens"


def rollout_equalities(config: TrainingConfig, reference: TwinRun) -> Iterator[Equality]:
    """Yields the equalities of a policy's rollouts."""
    yield _placement(config, reference)
    yield _self_checks(config)
    yield _engine(config, reference)


def _placement(config: TrainingConfig, reference: TwinRun) -> Equality:
    models = [reward.key for reward in config.reward_sources if reward.source.model is not None]
    why = "" if models else "no reward is a model"
    grouped = TwinRun("placement", {f"{key}.placement": "group" for key in models})
    what = "rewards in the policy's process = in a group of their own"
    return alike(config, "placement", what, (reference, grouped), why)


def _self_checks(config: RunConfig) -> Equality:
    checked = TwinRun("self-checks", {config.key("rollouts.self_checks"): True})

    def first_kl(one: Path, _: Path) -> float:
        of_rollouts = (logged_values(one / "metrics.jsonl", name) for name in KL)
        return max((abs(values[min(values)]) for values in of_rollouts if values), default=0.0)

    what = "before the first step the policy is its reference, in nats, and its ratios are 1"
    bound = TOLERANCE_OF_CHECKS
    return Equality("self-checks", what, (checked, checked), bound, CHECKED, first_kl, refused_by="self_checks")


def _engine(config: TrainingConfig, reference: TwinRun) -> Equality:
    generator = config.generator_group
    why = "" if generator else "the policy draws its responses itself"
    own = {"engine": generator.engine, "python": generator.python, "kv_cache_gib": 1} if generator else {}
    drawn = TwinRun("engine", {"generator": own})

    def other_tokens(one: Path, other: Path) -> float:
        shares = logged_values(other / "metrics.jsonl", EQUAL_TOKENS)
        if not shares:
            raise ValueError(f"{other.name} does not say which tokens the policy would have drawn")
        return max(1 - min(shares.values()), rollouts_apart(one, other))

    what = "tokens and updates by the policy's own draws = by vLLM's"
    runs = reference, drawn
    return Equality("engine", what, runs, ROLLOUT_TOLERANCE, DRAWN, other_tokens, why, refused_by="generator")
