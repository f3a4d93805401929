"""Scores and seeds go in; tokens drawn by the Gumbel-max trick come out (Maddison et al. 2014): the argmax of scores
with Gumbel noise added follows their softmax.

The noise is a hash of seed, position and token id, in integer arithmetic that is the same on every device. So a draw
depends on its own row's scores and seed alone, and scores that differ a little draw the same token nearly always: the
two best sums would have to be closer than that. Inverting the distribution function, where each token ends at the sum
of all before it, parts far sooner."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch


def _signed(number: int) -> int:
    """Returns the int64 with the lowest 64 bits of a number: torch's integers wrap as unsigned ones do."""
    return (number + 2**63) % 2**64 - 2**63


STEP = 0x9E3779B97F4A7C15
ROUNDS = ((30, _signed(0xBF58476D1CE4E5B9)), (27, _signed(0x94D049BB133111EB)))
"""Holds the constants of SplitMix64 (Steele, Lea & Flood 2014): what lies between its states, and its finalizer."""


def _shifted(x: torch.Tensor, bits: int) -> torch.Tensor:
    """Returns int64 shifted to the right as unsigned integers."""
    return (x >> bits).bitwise_and_(2 ** (64 - bits) - 1)


def _mixed(x: torch.Tensor) -> torch.Tensor:
    """Returns int64 in which each bit depends on all bits of the same number before, in place."""
    for bits, factor in ROUNDS:
        x.bitwise_xor_(_shifted(x, bits)).mul_(factor)
    return x.bitwise_xor_(_shifted(x, 31))


def hashes(seeds: torch.Tensor, position: int | torch.Tensor, size: int) -> torch.Tensor:
    """Returns integers (n, size) below 2^53, int64, of n seeds (int64), a position, or one for each (n,), and the token
    ids below `size`."""
    number = torch.as_tensor(position, device=seeds.device) + 1
    keys = _mixed(_mixed(seeds + _signed(STEP)) + number * _signed(STEP))
    states = torch.arange(1, size + 1, device=seeds.device).mul_(_signed(STEP))
    return _shifted(_mixed(keys[:, None] + states), 11)


AT_A_TIME = 2**17
"""Counts the numbers that are drawn at a time: they stay in a processor's cache."""


def exponentials(seeds: torch.Tensor, position: int | torch.Tensor, size: int) -> torch.Tensor:
    """Returns numbers (n, size), float32, that follow the exponential distribution: -log(u) of u = (hash + 1/2) / 2^53.

    From 1 - u, of which float32 knows all digits where u is near 1: there the numbers are small, and their tokens are
    those that are drawn."""
    beyond = hashes(seeds, position, size).neg_().add_(2**53).float().sub_(0.5).mul_(2.0**-53)
    return beyond.clamp_(max=1 - 2.0**-24).neg_().log1p_().neg_()


def draw(scores: torch.Tensor, seeds: torch.Tensor, positions: torch.Tensor, temperature: float) -> torch.Tensor:
    """Returns a token (n,) for each of the scores (n, V), with the seed and at the position (n,) of its own. Every
    engine that draws for a policy calls it."""
    rows_at_a_time = max(AT_A_TIME // scores.shape[1], 1)
    drawn = [
        torch.sub(some / temperature, exponentials(by, at, scores.shape[1]).log_()).argmax(dim=-1)
        for some, by, at in zip(*(part.split(rows_at_a_time) for part in (scores, seeds, positions)), strict=True)
    ]
    return torch.cat(drawn)


@dataclass(frozen=True)
class GumbelMax:
    """Draws each row's token with a seed of its own."""

    seeds: torch.Tensor
    """Holds a seed (int64) for each of the B rows of the whole batch."""
    temperature: float = 1.0

    @classmethod
    def seeded(cls, seeds: Sequence[Sequence[int]], device: torch.device, temperature: float = 1.0) -> GumbelMax:
        """Returns what draws with seeds that are several integers each."""
        words = [np.random.SeedSequence(list(seed)).generate_state(1, np.uint64).astype(np.int64) for seed in seeds]
        return cls(torch.from_numpy(np.concatenate(words)).to(device), temperature)

    def __call__(self, scores: torch.Tensor, rows: torch.Tensor, position: int) -> torch.Tensor:
        """Returns a token (n,) for each of the scores (n, V), those of the batch's `rows` (n,) at a position of their
        answers."""
        seeds = self.seeds[rows]
        return draw(scores, seeds, torch.full_like(seeds, position), self.temperature)
