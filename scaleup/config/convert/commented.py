"""A draft goes in; a commented YAML file comes out, at whose end stands what has no counterpart."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

import yaml

from scaleup.config.convert.draft import Draft, Left, nested

SECTIONS = ("stage", "name", "model", "teacher", "adapter", "quantization", "data", "train", "dpo", "reward", "distill")
"""Orders what a reader looks for first; the others follow."""
WIDTH = 120
COMMENT_AT = 44
LONGEST = 60
SECRET = re.compile(r"hub_token|api_key|secret|webhook|password|auth_token")


def commented(draft: Draft, source: str, output: str) -> str:
    """Returns the config as YAML; `source` and `output` are the names of the files."""
    looks = any(note.startswith("<-") for note in draft.notes.values())
    head = [
        f"# Made by `scaleup convert` of {source}, a config of {draft.trainer}.",
        *(["# Lines marked <- want a look; what has no counterpart stands at the end. Then"] if looks else []),
        *([] if looks else ["# What has no counterpart stands at the end. Then"]),
        "#",
        f"#   scaleup plan {output}",
        f"#   scaleup run {output}",
    ]
    raw = nested(draft.values)
    order = [*(key for key in SECTIONS if key in raw), *(key for key in raw if key not in SECTIONS)]
    body = [line for key in order for line in _lines(draft, key, raw[key], "")]
    return "\n".join([*head, *body, *_tail(draft)]) + "\n"


def _lines(draft: Draft, key: str, value: Any, indent: str) -> Iterator[str]:
    name, note = key.rpartition(".")[2], draft.notes.get(key, "")
    if isinstance(value, dict) and value and key not in draft.values:
        yield _beside(f"{indent}{name}:", note)
        for inner, each in value.items():
            yield from _lines(draft, f"{key}.{inner}", each, f"{indent}  ")
    elif isinstance(value, list) and any(isinstance(each, dict) for each in value):
        yield _beside(f"{indent}{name}:", note)
        yield from (f"{indent}  - {_flow(each)}" for each in value)
    else:
        yield _beside(f"{indent}{name}: {_flow(value)}", note)


class _Dumper(yaml.SafeDumper):
    """Writes templates and texts of several lines as a person would: on one line, in double quotes."""


def _text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    style = '"' if "\n" in value or "{" in value else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style)


_Dumper.add_representer(str, _text)


def _flow(value: Any) -> str:
    text = yaml.dump(value, Dumper=_Dumper, default_flow_style=True, width=10**6, allow_unicode=True, sort_keys=False)
    return text.removesuffix("\n").removesuffix("\n...").rstrip("\n")


def _beside(line: str, note: str) -> str:
    """Returns a line with its comment behind it, or above it where both are too long."""
    if not note:
        return line
    if len(line) < COMMENT_AT or len(line) + len(note) + 4 <= WIDTH:
        beside = f"{line.ljust(COMMENT_AT)}  # {note}"
        if len(beside) <= WIDTH:
            return beside
    indent = line[: len(line) - len(line.lstrip())]
    return "\n".join([*_wrapped(note, f"{indent}# "), line])


def _wrapped(text: str, indent: str) -> list[str]:
    lines, line = [], ""
    for word in text.split():
        if line and len(indent) + len(line) + 1 + len(word) > WIDTH:
            lines.append(indent + line)
            line = ""
        line = f"{line} {word}".strip()
    return [*lines, indent + line]


def _tail(draft: Draft) -> Iterator[str]:
    changed = [left for left in draft.left if left.matters]
    same = [left for left in draft.left if not left.matters]
    yield from _listed("Without a counterpart; the run may be another one without them:", changed)
    yield from _listed("Not needed here:", same)
    if draft.off:
        yield "#"
        yield from _wrapped(f"Empty or off there, and not needed here: {', '.join(draft.off)}", "# ")


def _listed(title: str, lefts: Sequence[Left]) -> Iterator[str]:
    if lefts:
        yield "#"
        yield f"# {title}"
        for left in lefts:
            first, *rest = _wrapped(f"{left.key}: {_shown(left)} -> {left.why}", "#     ")
            yield first.replace("#     ", "#   ", 1)
            yield from rest


def _shown(left: Left) -> str:
    """Returns a value in a few words, and none that is a secret."""
    if SECRET.search(left.key):
        return "..."
    text = " ".join(_flow(left.value).split())
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 3]}..."
