"""This module reads a YAML file and dotted overrides into a RunConfig, or reports every mistake at once, each with its
key and the nearest valid name."""

from __future__ import annotations

import copy
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from scaleup.config.mistakes import (
    DEPRECATED,
    Key,
    Renaming,
    as_problem,
    as_quoted,
    in_quotes,
    meant,
    real_key,
    suggestion,
    with_new_names,
)
from scaleup.config.run import RunConfig
from scaleup.config.stages import STAGES
from scaleup.errors import Problem, ScaleupError

Raw = dict[str, Any]


@dataclass
class Loaded:
    """Holds what could be read. `config` is None when too little of the file stands; with problems it holds what is
    left once the faulty keys are taken out or mended (with stand-ins for required ones), so that later checks can
    report their own findings beside these."""

    config: RunConfig | None
    problems: list[Problem] = field(default_factory=list)


def load(path: Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Returns the whole, valid config of a file. Raises ScaleupError with all problems."""
    loaded = load_leniently(path, overrides)
    if loaded.problems:
        raise ScaleupError(loaded.problems)
    assert loaded.config is not None
    return loaded.config


def load_leniently(path: Path, overrides: Sequence[str] = ()) -> Loaded:
    """Returns the config of a file with its problems instead of raising them, for a caller with more to check."""
    return load_mapping(read_mapping(path), overrides)


def load_mapping(raw: Raw, overrides: Sequence[str] = (), deprecated: Mapping[str, Renaming] = DEPRECATED) -> Loaded:
    """Returns, as `load_leniently` does, the config of a mapping. Keys of `deprecated` are read by their old names."""
    problems = []
    for override in overrides:
        try:
            apply_override(raw, override)
        except ScaleupError as error:
            problems += error.problems
    problems += with_new_names(raw, deprecated)
    written = {key: text for key, _, text in (override.partition("=") for override in overrides)}
    loaded = _validate(raw, problems, written)
    # Later stages may run from another folder: what is relative here is relative to the folder of this command.
    config = loaded.config and loaded.config.with_absolute_paths()
    return Loaded(config, loaded.problems)


def dump(config: RunConfig) -> str:
    """Returns the complete config as YAML; loading it gives the same config."""
    values = config.model_dump(mode="json")
    text = yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=1000)
    if not BREAKS.isdisjoint(text):  # PyYAML writes them in a way that it does not read back: escape them
        text = yaml.safe_dump(values, sort_keys=False, allow_unicode=False, width=1000)
    return text


BREAKS = frozenset("\x85\u2028\u2029")
"""Holds the line breaks besides the usual ones."""


class _StrictLoader(yaml.SafeLoader):
    """Refuses equal keys, of which PyYAML silently keeps the last, keys like a bare `on`, which it reads as true, and
    aliases that grow without bound: nine lines of them can stand for 10^9 values, which whoever walks them sees."""

    def get_single_node(self) -> yaml.Node | None:
        node: yaml.Node | None = super().get_single_node()
        if node is not None:
            seen: dict[int, int] = {}
            if _num_values(node, seen) - len(seen) > MOST_REPEATED:
                what = f"its aliases repeat more than {MOST_REPEATED} values"
                raise yaml.constructor.ConstructorError(None, None, what, node.start_mark)
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str) or key in seen:
                what = f"the key {key!r} " + (
                    "appears twice" if isinstance(key, str) else "is no text: put it in quotes"
                )
                raise yaml.constructor.ConstructorError(None, None, what, key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


MOST_REPEATED = 100_000
"""Bounds the values that stand in a file by aliases alone."""


def _num_values(node: yaml.Node, seen: dict[int, int]) -> int:
    """Returns how many values a node holds once every alias is written out; `seen` maps each node to that number.
    Raises ConstructorError for a node that holds itself."""
    if id(node) not in seen:
        seen[id(node)] = 0  # until all in it is counted
        parts = [part for pair in node.value for part in pair] if isinstance(node, yaml.MappingNode) else node.value
        inner = [] if isinstance(node, yaml.ScalarNode) else parts
        seen[id(node)] = 1 + sum(_num_values(part, seen) for part in inner)
    if not seen[id(node)]:
        raise yaml.constructor.ConstructorError(None, None, "an alias stands in what it names", node.start_mark)
    return seen[id(node)]


NO_TEXT = f"has bytes that are no text in this locale, whose encoding is {sys.getfilesystemencoding()}"
UTF_8 = "write it in UTF-8, and export LC_ALL=C.UTF-8 where the locale has another encoding"


def is_text(value: str) -> bool:
    """Returns whether a value from the shell is text. Python lets bytes that are none in the locale's encoding through
    as lone surrogates, which no file of ours can hold."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def check_working_folder() -> None:
    """Refuses a folder that relative paths cannot start from. Raises ScaleupError."""
    where = "the working folder"
    try:
        folder = str(Path.cwd())
    except OSError as error:
        raise ScaleupError.of(where, f"is gone: {error.strerror}", "go to one that is there") from None
    if not is_text(folder):
        raise ScaleupError.of(where, f"{folder!r} {NO_TEXT}", UTF_8)


BAD_YAML = (yaml.YAMLError, ValueError, RecursionError)
"""Holds what reading YAML may raise. PyYAML lets the last two through: an impossible date, brackets without end."""


def parse(text: str) -> Any:
    """Returns what YAML holds, which may be anybody's. Raises one of BAD_YAML."""
    return yaml.load(text, Loader=_StrictLoader)  # noqa: S506 (a SafeLoader)


def read_mapping(path: Path, start: str = "start it with `stage: sft`") -> Raw:
    """Returns what a YAML file holds. Raises ScaleupError where it cannot be read, or that is no mapping: then `start`
    says what to do."""
    text = ""
    try:
        text = path.read_text(encoding="utf-8")
        raw = parse(text)
    except FileNotFoundError:
        raise ScaleupError.of(
            str(path), "there is no such config file", "name a YAML file, e.g. one of configs/"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ScaleupError.of(str(path), f"cannot be read: {error}", "name a readable YAML file") from None
    except BAD_YAML as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        what = f"is not valid YAML: {' '.join(str(getattr(error, 'problem', error)).split())}"
        line = text.splitlines()[mark.line] if mark and mark.line < len(text.splitlines()) else ""
        raise ScaleupError.of(where, what, _mended(line)) from None
    if not isinstance(raw, dict):
        raise ScaleupError.of(str(path), "holds no mapping of keys to values", start)
    return raw


FIELD = r"\{[^{}:,]+\}"
TEMPLATE = re.compile(rf"\s*(?:- )?([\w-]+):\s+((?:[^\"'|>{{][^{{]*)?\{{?{FIELD}.*)")
"""Matches a line whose value is text with a column's name in braces, without quotes."""


def _mended(line: str) -> str:
    """Returns what to do with a line that is not valid YAML."""
    if found := TEMPLATE.fullmatch(line.rstrip()):
        return f"put the value in quotes: {found[1]}: {as_quoted(found[2])}"
    return "mend that line" + (": text with braces stands in quotes" if re.search(FIELD, line) else "")


def apply_override(raw: Raw, override: str) -> None:
    """Puts the value of `dotted.key=value` into a mapping. Raises ScaleupError if it is none, or has no place there."""
    dotted, equals, text = override.partition("=")
    keys = dotted.split(".")
    if not equals or not all(keys):
        raise ScaleupError.of(override, "is not an override", "write key=value, e.g. train.max_steps=10")
    if not is_text(text):
        raise ScaleupError.of(dotted, f"the value {text!r} {NO_TEXT}", UTF_8)
    try:
        value = parse(text)
    except BAD_YAML:
        raise ScaleupError.of(
            dotted, f"the value {text!r} is not valid YAML", f"mend it, or quote it as text: {in_quotes(dotted, text)}"
        ) from None
    if isinstance(value, str) and value == text.strip() != text:
        what = f"the value {text!r} begins or ends with spaces, which YAML drops"
        raise ScaleupError.of(dotted, what, f"leave them out, or quote it: {in_quotes(dotted, text)}")
    put(raw, dotted, value)


def put(raw: Raw, dotted: str, value: Any) -> None:
    """Puts a value into a mapping at a dotted key. Raises ScaleupError where there is no such place."""
    keys = dotted.split(".")
    here: Any = raw
    for key, following in zip(keys, [*keys[1:], None], strict=True):
        try:
            place: Any = int(key) if isinstance(here, list) else key
            if following is None:
                here[place] = value
            elif isinstance(here, dict) and not isinstance(here.get(place), (dict, list)):
                here[place] = here = {}
            else:
                here = here[place]
        except (IndexError, ValueError):
            raise ScaleupError.of(
                dotted, f"the list has no place {key!r}", f"it has places 0 to {len(here) - 1}"
            ) from None
        except TypeError:
            raise ScaleupError.of(dotted, f"{here!r} has no key {key!r}", "write it as a mapping in the file") from None


def _validate(raw: Raw, problems: list[Problem], overrides: Mapping[str, str]) -> Loaded:
    stage = raw.get("stage")
    if not isinstance(stage, str) or stage not in STAGES:
        known = ", ".join(STAGES)
        what = f"{stage!r} is no stage" if "stage" in raw else "is missing"
        if "pipeline" in raw:
            remedy = "run it with scaleup run FILE, or see what that would do with --dry-run"
            problems.append(Problem("pipeline", "lists several runs, and one is asked for", remedy))
            return Loaded(None, problems)
        if "study" in raw:
            remedy = "run it with scaleup search FILE"
            problems.append(Problem("study", "is a search, and a run is asked for", remedy))
            return Loaded(None, problems)
        problems.append(Problem("stage", what, suggestion(str(stage), list(STAGES)) or f"use one of {known}"))
        return Loaded(None, problems)
    model, rest = STAGES[stage], copy.deepcopy(raw)
    for attempt in range(ROUNDS):
        try:
            return Loaded(model.model_validate(rest), problems)
        except ValidationError as error:
            mistakes = [(real_key(rest, item["loc"]), dict(item)) for item in error.errors()]
        mended = {key: found for key, item in mistakes if (found := meant(model, key, item))}
        there = {key for key, _ in mended.values()}
        mistakes = [(key, item) for key, item in mistakes if item["type"] != "missing" or key not in there]
        if attempt == 0:
            problems += [as_problem(model, key, item, overrides) for key, item in mistakes]
        for key, item in sorted(mistakes, key=lambda pair: str(pair[0]), reverse=True):
            if item["type"] == "missing":
                _fill(rest, key, STAND_INS | model.stand_ins)
            elif key in mended:
                _replace(rest, key, *mended[key])
            else:
                _remove(rest, key)
    return Loaded(None, problems)


ROUNDS = 5
"""Bounds how often keys are taken out. A faulty key is taken out, or mended where it is clear what was meant; a
required one is then missing in the next round, and a stand-in takes its place."""

STAND_INS: Raw = {
    "name": "stand-in",
    "model": {"path": "scaleup/stand-in"},
    "path": "scaleup/stand-in",
    "task": "stand-in",
    "data": {},
    "train": {},
    "volume_claim": "stand-in",
    "image": "stand-in",
    "every": 2,
    "parameters": ["*"],
}
"""Holds values of required keys: enough to look for mistakes elsewhere in the file. They are never run, since what they
replace is a mistake. A stage's config class has those of its own keys (`stand_ins`)."""


def _remove(raw: Any, key: Key) -> None:
    """Removes a key. A list that holds something faulty goes as a whole, since the places of the others would shift,
    and so does a shorthand (`train: rows.jsonl`), which has no such key."""
    parent = _at(raw, key[:-1])
    if isinstance(parent, dict):
        parent.pop(key[-1], None)
    elif parent is not None:
        _remove(raw, key[:-1])


def _replace(raw: Any, key: Key, other: Key, value: Any) -> None:
    """Replaces a key by another of its section, or by the same with another value, unless the other is there too."""
    section = _at(raw, key[:-1])
    if isinstance(section, dict):
        section.pop(key[-1], None)
        section.setdefault(other[-1], value)


def _fill(raw: Any, key: Key, stand_ins: Raw) -> None:
    parent = _at(raw, key[:-1])
    if isinstance(parent, dict) and key[-1] in stand_ins:
        parent[key[-1]] = copy.deepcopy(stand_ins[str(key[-1])])


def _at(raw: Any, key: Key) -> Any:
    for part in key:
        try:
            raw = raw[part]
        except (KeyError, IndexError, TypeError):
            return None
    return raw
