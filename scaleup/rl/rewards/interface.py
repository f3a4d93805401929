"""This module holds the interface of rewards: samples that are submitted are scored while the policy generates on."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from scaleup.errors import ScaleupError
from scaleup.records.chats import Chat
from scaleup.rl.advantages import weighted_sum


@dataclass(frozen=True)
class Sample:
    """Holds a response to be scored, as text: the reward model has a tokenizer of its own."""

    prompt: str
    response: str
    finished: bool
    """Tells whether it ended with an EOS, not at its limit."""
    columns: dict[str, Any] = field(default_factory=dict)
    """Holds other values of the prompt's row, for functions and services."""
    chat: Chat | None = None
    """Holds the conversation that the prompt is the text of, for a reward model with a chat template of its own."""
    completion_ids: Sequence[int] = ()
    """Holds the policy's tokens of the response, with its EOS, for functions."""


class Rewards(Protocol):
    """Scores samples. Every rank of the policy has one and makes the same calls, each with samples of its own."""

    def submit(self, samples: Sequence[Sample]) -> None:
        """Send samples to be scored; returns at once if another process scores them."""

    def collect(self) -> list[float]:
        """Wait for the scores of all samples submitted since the last call, in order.

        Raises ScaleupError if they cannot be obtained, are not finite, or are too few or too many."""

    def close(self) -> None:
        """Release what the placement holds; no request follows."""


@dataclass(frozen=True)
class RewardSet:
    """Joins the rewards of a run: each scores every sample, and their scores are combined by weights."""

    rewards: Mapping[str, Rewards]
    """Maps the name of each reward -> where it comes from."""
    weights: Sequence[float]

    def submit(self, samples: Sequence[Sample]) -> None:
        """Send samples to all rewards."""
        for reward in self.rewards.values():
            reward.submit(samples)

    def collect(self) -> dict[str, list[float]]:
        """Wait for the scores of each reward, as its `collect` does."""
        return {name: reward.collect() for name, reward in self.rewards.items()}

    def weighted(self, by_source: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Return the weighted sum (N,) of the scores of each reward, (N,) each."""
        return weighted_sum(list(by_source.values()), self.weights)

    def close(self) -> None:
        """Close all of them, also where one cannot be."""
        with ExitStack() as stack:
            for reward in self.rewards.values():
                stack.callback(reward.close)


def checked_scores(scores: Any, count: int, where: str) -> list[float]:
    """Return a list, an array or a tensor of `count` numbers as a list of floats.

    Raises ScaleupError at `where` for anything else, for too few or too many, and for numbers that are not finite."""
    values = scores.tolist() if hasattr(scores, "tolist") else scores
    if not isinstance(values, (list, tuple)):
        raise ScaleupError.of(where, f"a list of {count} scores is due, and {_shown(values)} came")
    if len(values) != count:
        raise ScaleupError.of(where, f"{count} texts were to be scored, and {len(values)} scores came")
    numbers = [_number(value, position, where) for position, value in enumerate(values)]
    for position, score in enumerate(numbers):
        if not math.isfinite(score):
            raise ScaleupError.of(where, f"score {position} of {count} is {score}", "rewards must be finite")
    return numbers


def _number(value: Any, position: int, where: str) -> float:
    value = value.item() if hasattr(value, "item") else value
    if not isinstance(value, (int, float)):
        raise ScaleupError.of(where, f"score {position} is {_shown(value)}, not a number")
    return float(value)


def _shown(value: object) -> str:
    return f"{type(value).__name__} {value!r}"[:80]
