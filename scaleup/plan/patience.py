"""How long a run waits for a worker that gets no further, before it says that it hangs."""

from __future__ import annotations

from collections.abc import Iterator

from scaleup.config.schema import RunConfig
from scaleup.config.stages import PPOConfig
from scaleup.errors import Problem
from scaleup.plan.machine import Machine

BEFORE_COLLECTIVES = 0.9
"""The share of a collective's timeout after which a group that stands still hangs: later it would end unnamed."""
BESIDE_AN_ANSWER = 30.0
"""Seconds by which waiting for scores may last longer than the answer."""


def progress_timeout(config: RunConfig) -> float:
    """Of the group that leads: what is asked for, or nine tenths of a collective's timeout, and more than it may have
    to wait for scores."""
    parallel = config.parallel
    if parallel.progress_timeout_seconds is not None:
        return parallel.progress_timeout_seconds
    return max(BEFORE_COLLECTIVES * parallel.timeout_seconds, _answer_seconds(config) + BESIDE_AN_ANSWER)


def patience_problems(config: RunConfig, machine: Machine) -> Iterator[Problem]:
    progress, timeout = config.parallel.progress_timeout_seconds, config.parallel.timeout_seconds
    where, answer = "parallel.progress_timeout_seconds", _answer_seconds(config)
    if progress is not None and progress >= timeout:
        what = f"{progress} is not less than timeout_seconds {timeout}: a collective would end first, and name no rank"
        yield Problem(where, what, f"use at most {int(BEFORE_COLLECTIVES * timeout)}, or raise timeout_seconds")
    if progress is not None and progress <= answer:
        what = f"{progress} is not more than reward.timeout_seconds {answer:g}, which the policy may wait for scores"
        yield Problem(where, what, "use more, or lower reward.timeout_seconds")
    if isinstance(config, PPOConfig) and config.reward.parallel.progress_timeout_seconds is not None:
        what = "a reward group that gives no answers is started again after reward.timeout_seconds"
        yield Problem("reward.parallel.progress_timeout_seconds", what, "leave it out")


def _answer_seconds(config: RunConfig) -> float:
    """How long the policy may wait for one answer; 0 where it asks nobody."""
    asks = isinstance(config, PPOConfig) and config.reward.placement in ("group", "http")
    return config.reward.timeout_seconds if isinstance(config, PPOConfig) and asks else 0.0
