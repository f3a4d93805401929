"""This module checks every rollout. A run that fails one of these self-checks would still train, but
another objective: it stops instead."""

from __future__ import annotations

from typing import Any, NoReturn

import torch

from scaleup.distributed.runtime import Runtime
from scaleup.errors import ScaleupError
from scaleup.rl.algorithms import Algorithm, Estimates
from scaleup.rl.experience import Experience

TOLERANCE = {"no": 1e-4, "bf16": 5e-2, "fp16": 1e-2}
INT8_TOLERANCE = 5e-2
"""Is, in nats a token, on average, what rounding may differ between one batch and another. LLM.int8 rounds activations
too."""


def tolerance_of(mixed_precision: str, quantization: str | None) -> float:
    """Return the nats a token by which log-probabilities may differ from rounding alone."""
    return max(TOLERANCE[mixed_precision], INT8_TOLERANCE if quantization == "8bit" else 0.0)


def check_experience(
    experience: Experience, estimates: Estimates, algorithm: Algorithm, is_new: bool, tolerance: float
) -> None:
    """Check a rollout before it is learned from. `is_new`: no optimizer step has been taken in the run; `tolerance`:
    nats a token.

    Raises ScaleupError at `self_checks`."""
    mask = experience.mask
    if is_new and (kl := float(experience.log_ratio.abs().sum() / mask.sum())) > tolerance:
        _fail(f"policy and reference differ by {kl:.2e} nats a token before the first step")
    if experience.entropies is not None and (lowest := float(experience.entropies[mask].min())) < -1e-3:
        _fail(f"an entropy is {lowest:.2e}")
    outside = [experience.logprobs, experience.values, estimates.advantages, estimates.returns, estimates.rewards]
    if any(part is not None and bool(part[~mask].any()) for part in outside):
        _fail("non-zero values after the end of a response")
    last = mask.sum(dim=1) - 1
    rows = torch.arange(len(last))
    rest = estimates.rewards.clone()
    rest[rows, last] -= estimates.scores
    if (algorithm.settings.beta == 0 or algorithm.settings.kl_in == "loss") and float(rest.abs().max()) > 1e-6:
        _fail("a score is at another place than its response's last token")
    if failed := algorithm.failed_check(estimates, mask):
        _fail(failed)


def check_first_ratio(log_ratio: float, tolerance: float) -> None:
    """Check that the first minibatch, before any step, has ratios of 1.

    `log_ratio`: its mean absolute value there, in nats a token. Raises ScaleupError."""
    if not log_ratio <= tolerance:
        _fail(f"before any step the ratio of new to old probabilities is off by {log_ratio:.2e} nats a token, not 1")


def check_steps(steps: int, planned: int, may_end_early: bool) -> None:
    """Check that a rollout took passes x minibatches steps, or fewer where `target_kl` may end it. Raises
    ScaleupError."""
    if steps != planned and not may_end_early:
        _fail(f"{steps} optimizer steps were taken, and {planned} (passes x minibatches) are due")


@torch.no_grad()
def check_equal_ranks(runtime: Runtime, model: Any) -> None:
    """Check that ranks which each hold the whole model hold the same one. Every rank must call it.

    Raises ScaleupError."""
    if runtime.world == 1 or runtime.gathers_weights:
        return
    sums = [float(p.detach().double().sum()) for p in model.parameters() if p.requires_grad]
    mine = torch.tensor(sums, dtype=torch.float64)[None]
    every = runtime.gather(mine)
    if not torch.equal(every, every[:1].expand_as(every)):
        _fail("the ranks' parameters differ")


def _fail(what: str) -> NoReturn:
    remedy = "look for what makes the model's forward pass uneven, or set rollouts.self_checks: false (ppo.self_checks)"
    raise ScaleupError.of("self_checks", what, remedy)
