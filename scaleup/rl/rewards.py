"""Where scores come from, behind one interface: what is submitted is scored while the policy generates on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from scaleup.errors import ScaleupError


@dataclass(frozen=True)
class Sample:
    """A response to be scored. Text, because the reward model has a tokenizer of its own."""

    prompt: str
    response: str
    finished: bool
    """Whether it ended by itself (EOS), not by its limit."""
    columns: dict[str, Any] = field(default_factory=dict)
    """What else the prompt's row holds: for functions and services."""


class Rewards(Protocol):
    """Every rank of the policy has one and makes the same calls, each with samples of its own."""

    def submit(self, samples: Sequence[Sample]) -> None:
        """Ask for scores; returns at once where the scoring is done elsewhere."""

    def collect(self) -> list[float]:
        """The scores of all samples submitted since the last call, in order. Waits for them.

        Raises ScaleupError when there is no getting them, and for scores that are not finite or too few or many."""

    def close(self) -> None:
        """No further request will come."""


def checked_scores(found: Any, count: int, where: str) -> list[float]:
    """What somebody gave as `count` scores: a list, an array or a tensor of numbers.

    Raises ScaleupError at `where` for anything else, for too few or many, and for scores that are not finite."""
    values = found.tolist() if hasattr(found, "tolist") else found
    if not isinstance(values, (list, tuple)):
        raise ScaleupError.of(where, f"a list of {count} scores is due, and {_shown(values)} came")
    if len(values) != count:
        raise ScaleupError.of(where, f"{count} texts were to be scored, and {len(values)} scores came")
    scores = [_number(value, position, where) for position, value in enumerate(values)]
    for position, score in enumerate(scores):
        if not math.isfinite(score):
            raise ScaleupError.of(where, f"score {position} of {count} is {score}", "rewards must be finite")
    return scores


def _number(value: Any, position: int, where: str) -> float:
    value = value.item() if hasattr(value, "item") else value
    if not isinstance(value, (int, float)):
        raise ScaleupError.of(where, f"score {position} is {_shown(value)}, not a number")
    return float(value)


def _shown(value: object) -> str:
    return f"{type(value).__name__} {value!r}"[:80]
