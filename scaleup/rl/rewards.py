"""Where scores come from, behind one interface: what is submitted is scored while the policy generates on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol


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
