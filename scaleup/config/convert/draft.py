"""A table of rules and another trainer's config go in; a draft of ours comes out: what each key became, and which have
no counterpart."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from scaleup.config.load import Raw, load_mapping, put
from scaleup.errors import Problem, ScaleupError


class NoCounterpart(Exception):
    """Says why a value has no counterpart, or what to do instead."""


@dataclass(frozen=True)
class Left:
    """Names a key of the other trainer that became nothing."""

    key: str
    value: Any
    why: str
    matters: bool = True
    """Tells whether the run may be another one without it."""


@dataclass
class Draft:
    """Collects a config of ours by dotted keys."""

    trainer: str
    given: Mapping[str, Any]
    """Holds the other trainer's config with its defaults, without nulls."""
    defaults: frozenset[str] = frozenset()
    """Names the keys of `given` that the file leaves to the trainer's defaults."""
    values: Raw = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)
    """Maps a key of ours -> what is to be said beside it; a note that begins with `<-` asks for a look."""
    left: list[Left] = field(default_factory=list)
    off: list[str] = field(default_factory=list)
    """Names the keys that are empty, or switch something off that is off here too."""
    came_from: dict[str, str] = field(default_factory=dict)
    """Maps a key of ours -> the key that it was made from."""
    key: str = ""
    """Is the key that is converted just now."""

    def put(self, key: str, value: Any, note: str = "") -> None:
        """Sets a key of ours, from the key that is converted just now."""
        if self.key in self.defaults and not note:
            note = f"{self.trainer}'s default"
        self.values[key] = value
        self.came_from[key] = self.key
        self.notes.pop(key, None)
        if note:
            self.notes[key] = note

    def drop(self, key: str, why: str) -> None:
        """Takes a key of ours out again, and lists what it was made from."""
        value = self.values.pop(key)
        self.notes.pop(key, None)
        origin = self.came_from[key]
        if origin not in self.defaults:
            self.left.append(Left(origin, self.given.get(origin, value), why))

    def leave(self, why: str, matters: bool = True) -> None:
        """Lists the key that is converted just now among those without counterpart."""
        if self.key not in self.defaults:
            self.left.append(Left(self.key, self.given[self.key], why, matters))


Take = Callable[[Draft, Any], None]
Change = Callable[[Any], Any]


@dataclass(frozen=True)
class Rule:
    """Says what becomes of a key of another trainer's config."""

    to: tuple[str, ...] = ()
    """Names the keys of ours that it decides."""
    take: Take | None = None
    why: str = ""
    """Says what to do instead, where there is no counterpart."""
    matters: bool = True


def becomes(key: str, change: Change = lambda value: value, note: str = "") -> Rule:
    """Returns the rule of a key whose value, perhaps changed, is that of one of our keys."""
    return Rule((key,), lambda draft, value: draft.put(key, change(value), note))


def decides(take: Take, *keys: str) -> Rule:
    """Returns the rule of a key from which a function sets some of ours."""
    return Rule(keys, take)


def missing(why: str) -> Rule:
    """Returns the rule of a key without which the run may be another one."""
    return Rule(why=why)


def needless(why: str) -> Rule:
    """Returns the rule of a key that changes nothing of the result, or that is always so here."""
    return Rule(why=why, matters=False)


Rules = Mapping[str, Rule]


@dataclass(frozen=True)
class Trainer:
    """Describes how configs of one trainer are read."""

    name: str
    """Is what `--from` calls it."""
    called: str
    """Is what people call it."""
    page: str
    """Names its page in docs/coming-from/."""
    signature: frozenset[str]
    """Holds keys that configs of this trainer alone have."""
    unless: frozenset[str]
    """Holds keys of others that have these, too."""
    rules: Rules
    begin: Callable[[Draft], None]
    """Sets stage and name, and whatever depends on several keys. Raises ScaleupError for a kind of run that is not
    converted."""
    finish: Callable[[Draft], None]
    """Sets what is left open once all keys are read."""
    defaults: Callable[[Mapping[str, Any]], Mapping[str, Any]]
    """Returns, for a config, the trainer's defaults that differ from ours."""
    flatten: Callable[[Mapping[str, Any]], Mapping[str, Any]] = lambda raw: raw
    """Returns a config by the keys that `rules` names."""


OFF: tuple[Any, ...] = (None, False, "", "none", "no", 0)


def is_off(value: Any) -> bool:
    """Tells whether a value means that something is not wanted."""
    return value in OFF if isinstance(value, (str, bool, int, float, type(None))) else not value


def drafted(trainer: Trainer, raw: Mapping[str, Any]) -> Draft:
    """Returns the draft of a config. Raises ScaleupError for what is not converted at all."""
    flat = trainer.flatten(raw)
    given = {key: value for key, value in flat.items() if value is not None}
    defaults = {key: value for key, value in trainer.defaults(given).items() if key not in given}
    draft = Draft(trainer.called, {**given, **defaults}, frozenset(defaults))
    draft.off = [key for key, value in flat.items() if value is None]
    trainer.begin(draft)
    for key, value in draft.given.items():
        draft.key = key
        _convert(draft, trainer, value)
    draft.key = ""
    trainer.finish(draft)
    _without_orphans(draft)
    _without_refused(draft)
    return draft


def _convert(draft: Draft, trainer: Trainer, value: Any) -> None:
    rule = trainer.rules.get(draft.key)
    if rule is None and is_off(value):
        draft.off.append(draft.key)
    elif rule is None:
        draft.leave(f"is no key of {trainer.called} that is known here: look for its like in docs/config.md")
    elif rule.take is not None:
        try:
            rule.take(draft, value)
        except NoCounterpart as error:
            draft.leave(str(error))
        except (TypeError, ValueError, AttributeError, KeyError):
            draft.leave("is not of the form that is known here: look for its like in docs/config.md")
    elif is_off(value):
        draft.off.append(draft.key)
    else:
        draft.leave(rule.why, rule.matters)


def _without_orphans(draft: Draft) -> None:
    """Takes out the keys of an adapter where none is trained."""
    if "adapter.type" not in draft.values:
        for key in [key for key in draft.values if key.startswith("adapter.")]:
            draft.drop(key, "no adapter is trained")


def nested(values: Raw) -> Raw:
    """Returns a mapping of sections from dotted keys."""
    raw: Raw = {}
    for key, value in values.items():
        put(raw, key, value)
    return raw


def _without_refused(draft: Draft) -> None:
    """Takes out the values that our own config refuses. Raises ScaleupError where a required key is refused."""
    for _ in range(len(draft.values)):
        problems = load_mapping(nested(draft.values)).problems
        if not problems:
            return
        found = {key: problem for problem in problems if (key := _key_of(draft, problem))}
        if not found:
            raise ScaleupError(problems)
        for key, problem in found.items():
            draft.drop(key, f"is refused as {problem}")


def _key_of(draft: Draft, problem: Problem) -> str | None:
    return next((key for key in draft.values if f"{problem.where}.".startswith(f"{key}.")), None)
