"""This module translates pydantic's errors into the words of a config file: which key, what is wrong with it, and the
nearest valid name."""

from __future__ import annotations

import difflib
import json
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, get_args

from pydantic import BaseModel

from scaleup.errors import Problem

Key = tuple[str | int, ...]


def real_key(raw: Any, location: tuple[int | str, ...]) -> Key:
    """Returns pydantic's location without the list place that a shorthand like `train: rows.jsonl` never wrote, without
    the type that a section of several kinds has, and without the kind of value that was tried."""
    key: list[str | int] = []
    here: Any = raw
    for part in location:
        if isinstance(part, int) and not isinstance(here, list):
            continue
        if _is_tag(here, part):
            continue
        key.append(part)
        try:
            here = here[part]
        except (KeyError, IndexError, TypeError):
            here = None
    return tuple(key)


def _is_tag(here: Any, part: int | str) -> bool:
    """Returns whether a part of pydantic's location is no key, but the section's `type`, or the `[kind]` of its
    value."""
    if isinstance(here, dict) and part in here:
        return False
    return isinstance(part, str) and (part.startswith("[") or (isinstance(here, dict) and here.get("type") == part))


def as_problem(model: type[BaseModel], key: Key, item: dict[str, Any], overrides: Mapping[str, str]) -> Problem:
    """Returns what is wrong at a key; `overrides` maps keys that the command line gave to their text there."""
    where = ".".join(str(part) for part in key)
    kind = item["type"]
    if kind == "string_type":
        return _no_text(where, item["input"], overrides.get(where))
    if kind == "union_tag_not_found":
        return Problem(f"{where}.type", "is missing", "add it")
    if kind == "union_tag_invalid":
        return _no_such_type(f"{where}.type", **item["ctx"])
    if kind == "extra_forbidden" and (now := RENAMED.get(_without_places(key))):
        return Problem(where, f"is called {now} now", f"write {now}")
    if kind == "extra_forbidden":
        valid = _valid_names(model, key[:-1], item["loc"])
        remedy = suggestion(str(key[-1]), valid) or f"valid here: {', '.join(valid)}"
        return Problem(where, "unknown key", remedy)
    if kind == "missing":
        return Problem(where, "is missing", "add it")
    if kind == "literal_error" and (why := LEFT_OUT.get(str(item["input"]))):
        return Problem(where, *why)
    if kind == "literal_error":
        expected = item["ctx"]["expected"]
        choices = [choice.strip(" '") for choice in expected.replace(" or ", ",").split(",")]
        return Problem(
            where,
            f"{item['input']!r} is not valid",
            suggestion(str(item["input"]), choices) or f"use one of {expected}",
        )
    message = item["msg"].removeprefix("Value error, ").removeprefix("Input ")
    return Problem(where, f"{item['input']!r} {message[0].lower()}{message[1:]}", "mend the value")


def meant(model: type[BaseModel], key: Key, item: dict[str, Any]) -> tuple[Key, Any] | None:
    """Returns the key and the value that a mistake was surely meant to be: with them, nothing that is missing without
    them is reported beside it. None where that cannot be told."""
    if item["type"] == "string_type" and (text := _unquoted(item["input"])):
        return key, text
    if item["type"] == "extra_forbidden" and (now := RENAMED.get(_without_places(key))):
        return tuple(now.split(".")), item["input"]
    if item["type"] == "extra_forbidden":
        valid = _valid_names(model, key[:-1], item["loc"])
        if near := difflib.get_close_matches(str(key[-1]), valid, n=1, cutoff=SURE):
            return (*key[:-1], near[0]), item["input"]
    return None


def _without_places(key: Key) -> str:
    return ".".join(part for part in key if isinstance(part, str))


LEFT_OUT = {
    "token_classification": (
        "token_classification labels every token of a text, which no stage trains",
        "use Transformers' own Trainer for it; whole texts are stage: classify",
    )
}
"""Maps a value that users of Transformers would expect -> why it is none, and what to do instead."""
RENAMED = {"data.overlong": "data.too_long"}
"""Maps what a key was called -> what it is called now."""


@dataclass(frozen=True)
class Renaming:
    """Says what a key is called now, in which version it became so, and in which one its old name goes."""

    now: str
    since: str
    until: str


DEPRECATED: dict[str, Renaming] = {}
"""Maps a dotted key that is still read -> its new name."""


def with_new_names(raw: dict[str, Any], table: Mapping[str, Renaming]) -> list[Problem]:
    """Moves the values of keys that were renamed to their new names, with a warning on stderr for each. Returns the
    problems of those that are there by both."""
    problems = []
    for old, renaming in table.items():
        *parents, name = old.split(".")
        *now_parents, now_name = renaming.now.split(".")
        section, place = _section(raw, parents), _section(raw, now_parents, make=name in _section(raw, parents))
        if name not in section:
            continue
        if now_name in place:
            problems.append(Problem(old, f"is the old name of {renaming.now}, which is given too", "leave it out"))
        else:
            place[now_name] = section[name]
            _warn(old, renaming)
        del section[name]
    return problems


def _section(raw: dict[str, Any], parents: Sequence[str], make: bool = False) -> dict[str, Any]:
    """Returns the section at a key; an empty one where there is none, which is put there with `make`."""
    here = raw
    for part in parents:
        inner = here.setdefault(part, {}) if make else here.get(part)
        if not isinstance(inner, dict):
            return {}
        here = inner
    return here


@cache
def _warn(old: str, renaming: Renaming) -> None:
    """Warns once, however often a command reads the config."""
    what = f"is called {renaming.now} since version {renaming.since}, and its old name goes in {renaming.until}"
    print(f"warning: {old}: {what} -> write {renaming.now}", file=sys.stderr)


SURE = 0.8
"""Is how alike two names are (of 1) that are taken for one with a slip."""


def _no_text(where: str, value: Any, override: str | None) -> Problem:
    """Returns the problem of a value that YAML does not read as text."""
    written = override or _unquoted(value)
    if isinstance(value, dict) and written:
        what = f"{written.strip()!r} should be a valid string, and without quotes YAML reads a mapping"
    else:
        what = f"{value!r} should be a valid string"
    if not written:
        return Problem(where, what, "put it in quotes, if it is text")
    return Problem(where, what, f"put it in quotes: {in_quotes(where, written) if override else as_quoted(written)}")


def _unquoted(value: Any) -> str | None:
    """Returns the text that YAML, without quotes, read as a mapping: braces, or `a: {b}`. None where that cannot be
    told."""
    if not isinstance(value, dict) or not value:
        return None
    if all(each is None for each in value.values()):
        return f"{{{', '.join(value)}}}"
    (key, inner), *more = value.items()
    return f"{key}: {text}" if not more and (text := _unquoted(inner)) else None


def as_quoted(text: str) -> str:
    """Returns YAML that is this text."""
    return json.dumps(text, ensure_ascii=False)


def in_quotes(key: str, text: str) -> str:
    """Returns an override whose value is this text, as a shell takes it."""
    return f"{key}={shlex.quote(as_quoted(text))}"


def _no_such_type(where: str, tag: str, expected_tags: str, **_: Any) -> Problem:
    types = [choice.strip(" '") for choice in expected_tags.split(",")]
    return Problem(where, f"{tag!r} is not valid", suggestion(tag, types) or f"use one of {expected_tags}")


def _valid_names(model: type[BaseModel], parents: Key, location: Sequence[int | str]) -> list[str]:
    """Returns the keys of the section at a key; of several kinds, those of the one that pydantic's location names."""
    for part in parents:
        if isinstance(part, int):
            continue
        sections = list(_sections_in(model.model_fields[str(part)].annotation))
        if not sections:
            return []
        model = next((kind for kind in sections if not _types_of(kind).isdisjoint(location)), sections[0])
    return list(model.model_fields)


def _sections_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from _sections_in(part)


def _types_of(section: type[BaseModel]) -> frozenset[Any]:
    """Returns the values that a section's `type` may have, if it is one of several kinds."""
    field = section.model_fields.get("type")
    return frozenset(get_args(field.annotation)) if field else frozenset()


def suggestion(name: str, valid: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, valid, n=1, cutoff=0.5)
    return f"did you mean '{near[0]}'?" if near else ""
