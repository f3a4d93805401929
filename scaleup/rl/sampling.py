"""This module compares what a generator drew with the policy: proof that an engine of its own has the policy's weights
and sampler, and metrics of how far the two are apart."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace

import torch

from scaleup.data.prompts import Prompt
from scaleup.errors import ScaleupError
from scaleup.models.rollout import response_seeds
from scaleup.rl.advantages import response_mask
from scaleup.rl.experience import Experience, ExperienceMaker
from scaleup.rl.generators import TransformersGenerator

COMPARED = 2**31 + 1
"""Stands for the rollout's number in the seeds of responses that are compared, the same each time."""
COMPARED_TOKENS = 16


def compare_draws(
    maker: ExperienceMaker, prompts: Sequence[Prompt], seed: int, tolerance: float, is_exact: bool
) -> dict[str, float]:
    """Let both the generator and the policy respond to some prompts, as many on each rank, and compare: the engine's
    log-probabilities with the policy's, within a `tolerance` in nats a token, and, if `is_exact`, the tokens, of which
    a near tie may part a response. Every rank must call it. Returns metrics.

    Raises ScaleupError at `generator` where they do not agree: what was drawn then is not the policy's."""
    sampling = replace(
        maker.sampling, max_new_tokens=min(COMPARED_TOKENS, maker.sampling.max_new_tokens), min_limit=None
    )
    seeds, ids = response_seeds(seed, COMPARED, len(prompts)), [prompt.ids for prompt in prompts]
    maker.model.eval()
    itself = TransformersGenerator(maker.runtime, maker.model, len(prompts))
    with closing(maker.generator.batches(ids, seeds, sampling)) as batches:
        (theirs,) = batches
    with closing(itself.batches(ids, seeds, sampling)) as batches:
        (own,) = batches
    tokens, lengths = theirs.responses.tokens, theirs.responses.lengths
    computed = maker.log_probabilities([ids[row] for row in theirs.rows], tokens, lengths)["logprobs"]
    assert theirs.logprobs is not None
    mask = response_mask(lengths, tokens.shape[1])
    equal = (own.responses.tokens.cpu() == tokens) | ~mask
    until = equal.int().cumprod(dim=1) * mask
    off = torch.where(mask, (computed - theirs.logprobs).abs(), 0.0)
    sums = [float(part) for part in (off.sum(), mask.sum(), until.sum(), equal.all(dim=1).sum())]
    difference, count, same, rows = maker.runtime.sum(*sums)
    if not difference / count <= tolerance:
        what = (
            f"draws by other weights than the policy's: log-probabilities differ by {difference / count:.1e} nats a "
            f"token, and {tolerance:g} may come of rounding"
        )
        raise ScaleupError.of("generator", what, "use engine: transformers, and report model and versions")
    if is_exact and rows < len(prompts) / 2:
        what = f"draws other tokens than the policy from the same seeds: {rows:g} of {len(prompts)} responses are equal"
        raise ScaleupError.of("generator", what, "use engine: transformers, and report model and versions")
    return {"sampling/equal_tokens": same / count}


def sampling_metrics(experience: Experience) -> dict[str, float]:
    """Return how far the engine's probabilities of a rollout's tokens were from the policy's, under the names of TRL's
    GRPO trainer; nothing where the policy drew itself."""
    if experience.sampling_logprobs is None or experience.importance is None:
        return {}
    assert experience.logprobs is not None, "importance follows from them"
    mask = experience.mask
    off = (experience.logprobs - experience.sampling_logprobs)[mask].abs()
    ratio = experience.importance[mask]
    return {
        "sampling/sampling_logp_difference/mean": float(off.mean()),
        "sampling/sampling_logp_difference/max": float(off.max()),
        "sampling/importance_sampling_ratio/min": float(ratio.min()),
        "sampling/importance_sampling_ratio/mean": float(ratio.mean()),
        "sampling/importance_sampling_ratio/max": float(ratio.max()),
    }
