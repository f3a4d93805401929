"""Items and decisions made by hand."""

from __future__ import annotations

from collections.abc import Sequence

from scaleup.labelling.items import Answer, Item, ItemSet
from scaleup.labelling.labels import Decision, checked_ranks


def items(num_items: int, num_answers: int = 2) -> ItemSet:
    """Items of which model m0, m1, ... answered each with a text of its own."""
    answers = tuple(Answer(f"answer {number}", (f"m{number}",)) for number in range(num_answers))
    return ItemSet(0, tuple(Item(number, f"prompt {number}", answers) for number in range(num_items)))


def decision(number: int, kind: str, ranks: Sequence[int] | None = None, shown: Sequence[int] = (0, 1)) -> Decision:
    return Decision(number, kind, checked_ranks(kind, ranks, len(shown)), tuple(shown))


def said(*words: str) -> dict[int, Decision]:
    """What one labeller decided of items of two answers: `0` or `1` is better, `tie`, `neither`, or nothing."""
    ranks = {"0": (1, 2), "1": (2, 1), "tie": (1, 1), "neither": None}
    kinds = {"0": "choice", "1": "choice", "tie": "tie", "neither": "neither"}
    return {at: decision(at, kinds[word], ranks[word]) for at, word in enumerate(words) if word}
