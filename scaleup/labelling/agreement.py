"""Decisions of labellers go in; how far they agree, which model they prefer, and rows of preferences come out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from random import Random
from typing import Any

from scaleup.labelling.items import Item, ItemSet
from scaleup.labelling.labels import NEITHER, TIE, Decision

Labels = Mapping[str, Mapping[int, Decision]]
"""Maps a labeller -> an item's id -> the decision."""
Ratings = Sequence[Sequence[str]]
"""Has for each item the category that each rater gave it, in the order of the raters."""
SAMPLES, SEED = 1000, 0
ENDS = (0.025, 0.975)


def cohen_kappa(ratings: Ratings) -> float | None:
    """Returns Cohen's kappa of two raters, (p_o - p_e) / (1 - p_e): p_o is the share of items on which they agree, p_e
    the share expected from how often each uses each category (Cohen 1960, "A coefficient of agreement for nominal
    scales"). None where there is no item, or where both use one and the same category alone."""
    if not ratings:
        return None
    observed = sum(one == other for one, other in ratings) / len(ratings)
    first, second = Counter(one for one, _ in ratings), Counter(other for _, other in ratings)
    expected = sum(first[category] * second[category] for category in first) / len(ratings) ** 2
    return _beyond_chance(observed, expected)


def fleiss_kappa(ratings: Ratings) -> float | None:
    """Returns Fleiss' kappa of n raters who all rated the same N items: P is the mean over items of the share of pairs
    of raters who agree, P_e the sum of the squared shares of the categories, and kappa (P - P_e) / (1 - P_e) (Fleiss
    1971, "Measuring nominal scale agreement among many raters"). None as for Cohen's."""
    if not ratings or len(ratings[0]) < 2:
        return None
    num_raters = len(ratings[0])
    counts = [Counter(row) for row in ratings]
    pairs = num_raters * (num_raters - 1)
    observed = sum(sum(count * (count - 1) for count in row.values()) / pairs for row in counts) / len(ratings)
    total: Counter[str] = Counter()
    for row in counts:
        total += row
    expected = sum((count / (len(ratings) * num_raters)) ** 2 for count in total.values())
    return _beyond_chance(observed, expected)


def _beyond_chance(observed: float, expected: float) -> float | None:
    return None if expected == 1 else (observed - expected) / (1 - expected)


@dataclass(frozen=True)
class Agreement:
    """Holds how far some labellers agree on the items that all of them decided."""

    labellers: tuple[str, ...]
    num_items: int
    observed: float | None
    """Is the share of items on which they all say the same."""
    kappa: float | None
    interval: tuple[float, float] | None
    """Is the 95 % interval of kappa, by bootstrap over the items; None where a sample has no kappa."""


def category(item: Item, decision: Decision) -> str:
    """Returns what a decision says of an item, as kappa takes it: the model whose answer is the best, a tie at the top,
    or neither."""
    if decision.ranks is None:
        return NEITHER
    return TIE if decision.best is None else f"model {item.answers[decision.best].models[0]}"


def agreement(items: Sequence[Item], labels: Labels, labellers: Sequence[str]) -> Agreement:
    """Returns how far these labellers agree: Cohen's kappa of two, Fleiss' of more."""
    together = [item for item in items if all(item.id in labels[labeller] for labeller in labellers)]
    ratings = [[category(item, labels[labeller][item.id]) for labeller in labellers] for item in together]
    measure = cohen_kappa if len(labellers) == 2 else fleiss_kappa
    observed = sum(len(set(row)) == 1 for row in ratings) / len(ratings) if ratings else None
    return Agreement(tuple(labellers), len(ratings), observed, measure(ratings), _interval(ratings, measure))


def agreements(items: Sequence[Item], labels: Labels) -> list[Agreement]:
    """Returns the agreement of all labellers and, where there are more than two, of each two of them."""
    names = sorted(labels)
    groups = [names, *combinations(names, 2)] if len(names) > 2 else [names] if len(names) == 2 else []
    return [agreement(items, labels, group) for group in groups]


def _interval(ratings: Ratings, measure: Callable[[Ratings], float | None]) -> tuple[float, float] | None:
    draw = Random(SEED)
    sampled = [measure(draw.choices(ratings, k=len(ratings))) for _ in range(SAMPLES if len(ratings) > 1 else 0)]
    values = sorted(value for value in sampled if value is not None)
    if not values or len(values) < len(sampled):
        return None
    low, high = (values[round(end * (len(values) - 1))] for end in ENDS)
    return low, high


@dataclass(frozen=True)
class Pairs:
    """Holds rows of preferences, and counts pairs of answers that gave none, by the reason."""

    rows: list[dict[str, Any]]
    left_out: Counter[str]


def majority_pairs(item_set: ItemSet, labels: Labels) -> Pairs:
    """Returns a row for each two answers of which more than half of those who judged them prefer the same one. Its
    `margin` is the share of these less that of those who prefer the other."""
    rows, left_out = [], Counter[str]()
    for item in item_set.items:
        decisions = [each[item.id] for each in labels.values() if item.id in each]
        if not decisions:
            left_out["not decided"] += 1
            continue
        for one, other in combinations(range(len(item.answers)), 2):
            votes = Counter(_vote(decision, one, other) for decision in decisions)
            del votes[""]
            judged = votes.total()
            if not judged:
                left_out["not compared"] += 1
                continue
            winner = next((vote for vote, count in votes.items() if 2 * count > judged), "no majority")
            if winner in ("one", "other"):
                margin = abs(votes["one"] - votes["other"]) / judged
                rows.append(_row(item, (one, other) if winner == "one" else (other, one), margin, judged))
            else:
                left_out[winner] += 1
    return Pairs(rows, left_out)


def _vote(decision: Decision, one: int, other: int) -> str:
    """Returns which of two answers a decision prefers, `tie`, `neither`, or nothing where it says nothing of them."""
    if decision.ranks is None:
        return NEITHER
    preferred = decision.prefers(one, other)
    return "" if preferred is None else {1: "one", -1: "other", 0: TIE}[preferred]


def _row(item: Item, pair: tuple[int, int], margin: float, num_labellers: int) -> dict[str, Any]:
    chosen, rejected = (item.answers[number] for number in pair)
    row = {"id": item.id, "prompt": item.prompt, "chosen": chosen.text, "rejected": rejected.text, "margin": margin}
    if item.tools:
        row["tools"] = item.tools
    return row | {
        "labellers": num_labellers,
        "chosen_by": list(chosen.models),
        "rejected_by": list(rejected.models),
    }


@dataclass(frozen=True)
class Standing:
    """Counts how often a model's answer was preferred to another model's, over all labellers."""

    model: str
    won: int
    tied: int
    lost: int

    @property
    def win_rate(self) -> float | None:
        """Returns the share of comparisons that it won, a tie being half of one."""
        total = self.won + self.tied + self.lost
        return (self.won + self.tied / 2) / total if total else None


def standings(item_set: ItemSet, labels: Labels) -> list[Standing]:
    """Returns a row for each model; a comparison in which neither was good counts as a tie."""
    counts = {model: Counter[int]() for model in item_set.models}
    for item, decision in _decided(item_set, labels):
        for one, other in combinations(range(len(item.answers)), 2):
            preferred = decision.prefers(one, other)
            if preferred is None:
                continue
            for model in item.answers[one].models:
                counts[model][preferred] += 1
            for model in item.answers[other].models:
                counts[model][-preferred] += 1
    return [Standing(model, count[1], count[0], count[-1]) for model, count in counts.items()]


def first_shown_share(item_set: ItemSet, labels: Labels) -> float | None:
    """Returns in which share of the decisions for one of two answers that was the one shown first: far from a half, it
    tells of a habit. None where there is no such decision."""
    first = [
        decision.shown[0] == decision.best
        for _, decision in _decided(item_set, labels)
        if len(decision.shown) == 2 and decision.best is not None
    ]
    return sum(first) / len(first) if first else None


def _decided(item_set: ItemSet, labels: Labels) -> Iterator[tuple[Item, Decision]]:
    items = {item.id: item for item in item_set.items}
    for decisions in labels.values():
        for number, decision in decisions.items():
            yield items[number], decision
