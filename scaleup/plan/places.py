"""This module knows the files and folders that a config names beside its rows (models, tokenizers, adapters, a reward
function, a chat template) by what they hold, so that a run may go on when they lie elsewhere.

Weights are not read whole: of each file the size and a few blocks are taken. Files of one layout that were trained
apart differ everywhere."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from scaleup.config.run import RunConfig
from scaleup.errors import ScaleupError
from scaleup.plan.model_path import model_folder
from scaleup.records.chat_templates import KEY, TRL, read_template

BLOCK = 1 << 16
BLOCKS = 16
"""Counts the blocks of a file that are read at most, spread over it."""
ELSEWHERE = ("name", "runs_dir", "data", "cluster")
"""Names the sections whose paths are known otherwise, or have no say."""


def place_marks(config: RunConfig) -> dict[str, str]:
    """Returns what is held by each file or folder that the config names, by key."""
    values = config.model_dump(mode="json", exclude=set(ELSEWHERE))
    named = [*_texts(values, ""), *([(KEY, template)] if (template := config.data.chat_template) else [])]
    return {key: mark for key, value in named if (mark := mark_of(value)) is not None}


def value_at(config: RunConfig, key: str) -> str | None:
    """Returns the text at a dotted key."""
    return dict(_texts(config.model_dump(mode="json"), "")).get(key)


def mark_of(value: str) -> str | None:
    """Returns a hash of what a file or folder holds, also of FILE.py:NAME and of one of TRL's templates; None where
    the text names none of these, or none that can be read."""
    if value.startswith(TRL):
        return _template_mark(value)
    file, _, name = value.rpartition(":")
    if not value.startswith("/"):
        return None
    digest = hashlib.blake2b(digest_size=20)
    try:
        folder = model_folder(value)
        if folder is not None:
            for each in sorted(each for each in folder.iterdir() if each.is_file()):
                _add(digest, each, each.name)
        elif Path(value).is_file():
            _add(digest, Path(value), "")
        elif file and Path(file).is_file():
            _add(digest, Path(file), name)
        else:
            return None
    except OSError:
        return None
    return digest.hexdigest()


def _template_mark(named: str) -> str | None:
    try:
        return hashlib.blake2b(read_template(named).encode(), digest_size=20).hexdigest()
    except ScaleupError:
        return None


def _add(digest: Any, file: Path, name: str) -> None:
    size = file.stat().st_size
    digest.update(f"{name}\0{size}\0".encode("utf-8", "surrogateescape"))
    with file.open("rb", buffering=0) as opened:
        for start in sorted({part * max(0, size - BLOCK) // (BLOCKS - 1) for part in range(BLOCKS)}):
            opened.seek(start)
            digest.update(opened.read(BLOCK))


def _texts(value: Any, key: str) -> Iterator[tuple[str, str]]:
    """Yields the texts within a value, each with its dotted key."""
    if isinstance(value, str):
        yield key, value
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, part in parts:
        yield from _texts(part, f"{key}.{name}" if key else str(name))
