"""What the tests of all trainers share: a file that is converted, and what it becomes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from scaleup.config.convert import TRAINERS, convert
from scaleup.config.convert.draft import Draft, drafted
from scaleup.config.load import load
from scaleup.config.run import RunConfig


def mapped(trainer: str) -> set[str]:
    """The keys of a trainer that decide keys of ours, or that are looked at value by value."""
    return {key for key, rule in TRAINERS[trainer].rules.items() if rule.take is not None}


def draft_of(trainer: str, raw: dict[str, Any]) -> Draft:
    return drafted(TRAINERS[trainer], raw)


def written(raw: dict[str, Any], folder: Path, **options: Any) -> tuple[str, RunConfig]:
    """The text that a config becomes, and what our own loader makes of it."""
    file = folder / "theirs.yaml"
    file.write_text(yaml.safe_dump(raw), encoding="utf-8")
    text = convert(file, **options)
    (folder / "ours.yaml").write_text(text, encoding="utf-8")
    return text, load(folder / "ours.yaml")


def outcome(trainer: str, around: dict[str, Any], key: str, value: Any) -> tuple[dict[str, Any], str | None]:
    """What a key changes in our config, and why it is listed at the end, if it is."""
    with_it, without = draft_of(trainer, {**around, key: value}), draft_of(trainer, around)
    changed = {name: each for name, each in with_it.values.items() if without.values.get(name) != each}
    why = next((left.why for left in with_it.left if left.key == key or left.key.startswith(f"{key}.")), None)
    return changed, why
