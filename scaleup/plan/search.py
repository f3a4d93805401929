"""A config and what could be changed of it go in; the nearest configs that fit come out.

Each candidate is loaded and resolved like a config of its own, so whatever is refused of a config is refused of it, and
what it needs is what `scaleup plan` says of it. The rows are checked once and one process describes the models, each
micro-batch once. A micro-batch's size is found by bisection, for the peak grows with it.

Candidates are the subsets of the settings, the smallest first. A superset of what fits is not tried: what is found are
the nearest configs, each with the cheapest values of its settings."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import combinations, product
from pathlib import Path
from typing import Literal

from scaleup.config.load import Loaded, load_leniently
from scaleup.config.run import RunConfig
from scaleup.config.schema import ModelConfig
from scaleup.errors import ScaleupError
from scaleup.plan.alternatives import SETTINGS, Alternatives, Overrides, Setting
from scaleup.plan.describe import Answers, Described, Question, describe_models
from scaleup.plan.facts import MicroBatch, ModelFacts, RowsRequest
from scaleup.plan.proposals import Kind, Proposal, proposal_of
from scaleup.plan.resolve import Sources, checked_rows, resolve
from scaleup.plan.types import Plan
from scaleup.records.check import DataCheck

MOST_PLANS = 400
"""Bounds the candidates that are planned: each takes some 10 ms."""

Settings = tuple[Setting | Literal["micro-batch"], ...]
FROM_CHEAP: Settings = ("micro-batch", *SETTINGS)
"""Lists the settings that leave the steps as they are."""


@dataclass
class Known:
    """Remembers what the candidates have in common: the rows, and the facts of models by what was asked of them."""

    ask: Callable[[Question], Answers]
    data: DataCheck | None = None
    notes: tuple[str, ...] = ()
    facts: dict[str, ModelFacts | ScaleupError] = field(default_factory=dict)

    @property
    def sources(self) -> Sources:
        return Sources(self.check, self.describe)

    def check(self, config: RunConfig) -> DataCheck:
        self.data = self.data or checked_rows(config)
        return self.data

    def describe(
        self, models: Mapping[str, ModelConfig], micro_batch: MicroBatch | None, readers: Mapping[str, RowsRequest]
    ) -> Described:
        """Returns what `describe_models` does. The rows are tried by the first config's models alone."""
        sizes = {where: micro_batch if where == "model" else None for where in models}
        keys = {where: f"{where} {model.model_dump_json()} {sizes[where]}" for where, model in models.items()}
        if missing := {where: model for where, model in models.items() if keys[where] not in self.facts}:
            is_first = not self.facts
            try:
                described = describe_models(missing, micro_batch, readers if is_first else None, self.ask)
            except ScaleupError as error:
                self.facts |= {keys[where]: error for where in missing}
            else:
                self.facts |= {keys[where]: facts for where, facts in described.facts.items()}
                self.notes = described.notes if is_first else self.notes
        found = {where: self.facts[key] for where, key in keys.items()}
        for each in found.values():
            if isinstance(each, ScaleupError):
                raise each
        return Described({where: each for where, each in found.items() if isinstance(each, ModelFacts)}, self.notes)


@dataclass(frozen=True)
class Asked:
    """Holds a config's file and what it is planned with: what the user overrides, then what a described machine
    does."""

    file: Path
    overrides: Sequence[str]
    described: Sequence[str]

    def load(self, changes: Iterable[str] = ()) -> Loaded:
        return load_leniently(self.file, [*self.described, *changes])

    def pasted(self, changes: Overrides) -> Overrides:
        """Returns the overrides of `scaleup run FILE` that make this config with `changes`, each key once."""
        bare = load_leniently(self.file, self.overrides).config
        beside = self.described[len(self.overrides) :]
        needed = [each for each in beside if bare is None or not _says(bare, each)]
        last = {each.partition("=")[0]: each for each in (*self.overrides, *needed, *changes)}
        return tuple(last.values())


def _says(config: RunConfig, override: str) -> bool:
    """Returns whether `parallel.KEY=VALUE` is what a config says, or leaves to the machine."""
    key, _, value = override.partition("=")
    return str(getattr(config.parallel, key.rpartition(".")[2])) in (value, "auto")


def is_fitting(plan: Plan) -> bool:
    return plan.fitting is not None and plan.groups[0].strategy in plan.fitting


@dataclass(frozen=True)
class Found:
    """Holds a candidate that fits, and the settings in which it differs."""

    settings: Settings
    proposal: Proposal


class Search:
    def __init__(self, asked: Asked, alternatives: Alternatives, known: Known) -> None:
        self.asked, self.alternatives, self.known = asked, alternatives, known
        self.plans: dict[Overrides, tuple[RunConfig, Plan] | None] = {}

    @property
    def is_cut(self) -> bool:
        return len(self.plans) >= MOST_PLANS

    def nearest(self) -> list[Proposal]:
        """Returns the nearest configs that fit: of the same steps, then of an adapter, then of processes."""
        count = self.alternatives.count
        same = self._kind("same steps", (), count, 4)
        found = list(same)
        for adapter in self.alternatives.adapters():
            found += self._kind("adapter", adapter, count, 1, same)
        for count, changes in self.alternatives.counts():
            if more := self._kind("processes", changes, count, 2, same):
                found += more
                break
        return [each.proposal for each in found]

    def better_used(self) -> list[Proposal]:
        """Returns the largest micro-batch that fits, with what is recomputed, and without."""
        found = []
        for changes in ((), *self.alternatives.without_recomputation()):
            best = self._sized("same steps", changes, self.alternatives.count, is_larger=True)
            if best is None and changes:
                best = self._proposal("same steps", changes)
            found += [best] if best else []
        return found

    def _kind(self, kind: Kind, first: Overrides, count: int, most: int, beside: Sequence[Found] = ()) -> list[Found]:
        """Returns up to `most` minimal sets of settings with which the config fits, once `first` has changed it. What
        is `beside` fits with its settings alone, so `first` has no use there."""
        found: list[Found] = []
        for number in range(0 if first else 1, len(FROM_CHEAP) + 1):
            for chosen in combinations(FROM_CHEAP, number):
                is_near = not any(set(each.settings) <= set(chosen) for each in (*found, *beside))
                if is_near and len(found) < most:
                    fitting = self._of(kind, first, chosen, count)
                    found += sorted(fitting, key=lambda each: each.proposal.cost)[:1]
        return sorted(found, key=lambda each: (len(each.settings), each.proposal.cost))

    def _of(self, kind: Kind, first: Overrides, chosen: Settings, count: int) -> Iterator[Found]:
        """Yields what fits of all values of the chosen settings."""
        values = (self.alternatives.values(setting) for setting in chosen if setting != "micro-batch")
        for parts in product(*values):
            changes = sum(parts, first)
            if "micro-batch" in chosen:
                proposal = self._sized(kind, changes, count)
            else:
                proposal = self._proposal(kind, changes + self.alternatives.kept(count))
            if proposal is not None:
                yield Found(chosen, proposal)

    def _sized(self, kind: Kind, changes: Overrides, count: int, is_larger: bool = False) -> Proposal | None:
        """Returns the config with the largest micro-batch that fits: of those smaller than its own, or larger."""
        alternatives = self.alternatives
        if not alternatives.divides:
            return None
        own = alternatives.size
        sizes = [size for size in alternatives.sizes(count) if (size > own if is_larger else size < own)]
        made = {size: changes + alternatives.batch(size, count) for size in sizes}
        size = largest(sizes, lambda size: self._fitting(made[size]) is not None)
        return None if size is None else self._proposal(kind, made[size])

    def _proposal(self, kind: Kind, changes: Overrides) -> Proposal | None:
        if (planned := self._fitting(changes)) is None:
            return None
        return proposal_of(kind, changes, self.asked.pasted(changes), *planned)

    def _fitting(self, changes: Overrides) -> tuple[RunConfig, Plan] | None:
        """Returns the config with some changes, and its plan; None if it does not fit, or is refused."""
        if changes not in self.plans and not self.is_cut:
            self.plans[changes] = None
            with suppress(ScaleupError):
                loaded, machine = self.asked.load(changes), self.alternatives.machine
                planned = resolve(loaded, machine, check_run_folder=False, sources=self.known.sources)
                self.plans[changes] = planned if is_fitting(planned[1]) else None
        return self.plans.get(changes)


def largest(sizes: Sequence[int], fits: Callable[[int], bool]) -> int | None:
    """Returns the largest of the sizes, of which the small ones fit if a larger one does. The last one is tried by
    itself: without accumulation gradients may take less."""
    if not sizes or not fits(sizes[0]):
        return None
    if fits(sizes[-1]):
        return sizes[-1]
    low, high = 0, len(sizes) - 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(sizes[middle]) else (low, middle)
    return sizes[low]
