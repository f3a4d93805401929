"""This module knows the files and folders that a config names beside its rows (models, tokenizers, adapters, a reward
function, a chat template) by what they hold, so that a run goes on where they lie elsewhere, and not where they were
replaced.

Weights are not read whole: of each file a few blocks are taken, and of each tensor. Files of one layout that were
trained apart differ in every tensor that was trained."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from scaleup.artifacts.run_folder import MAY_CHANGE_ON_RESUME, is_among
from scaleup.config.run import RunConfig
from scaleup.errors import ScaleupError
from scaleup.plan.model_path import ADAPTER_FILE, adapter_base, model_folder
from scaleup.records.chat_templates import KEY, TRL, read_template

BLOCK = 1 << 16
BLOCKS = 16
"""Counts the blocks of a file that are read at most, spread over it."""
TENSOR_BLOCK = 1 << 12
TENSOR_BLOCKS = 4
"""Counts the blocks of a tensor that are read at most."""
MAX_HEADER = 100_000_000
"""Is the largest header that safetensors allows, in bytes."""

Marks = dict[str, str]
"""Maps the name of each file at a place, or of a function, -> a hash of what it holds."""


def place_marks(config: RunConfig) -> dict[str, Marks]:
    """Returns what is held by each file or folder that the config names, by key. Those of rows are known otherwise,
    and those that may change when a run goes on have no say."""
    free = MAY_CHANGE_ON_RESUME | config.free_on_resume
    named = [
        *(each for each in texts_of(config.model_dump(mode="json", exclude={"data"})) if not is_among(each[0], free)),
        *([(KEY, template)] if (template := config.data.chat_template) else []),
    ]
    return {key: marks for key, value in named if (marks := marks_of(value)) is not None}


def value_at(config: RunConfig, key: str) -> str | None:
    """Returns the text at a dotted key."""
    return dict(texts_of(config.model_dump(mode="json"))).get(key)


def marks_of(value: str) -> Marks | None:
    """Returns hashes of what a file or folder holds, also of FILE.py:NAME, of one of TRL's templates, and of an adapter
    with its base; None where the text names none of these, or none that can be read."""
    if value.startswith(TRL):
        return _template_marks(value)
    file, _, name = value.rpartition(":")
    if not value.startswith("/"):
        return None
    try:
        folder = model_folder(value)
        if folder is not None:
            return _folder_marks(folder)
        if Path(value).is_file():
            return {"": _mark(Path(value))}
        if file and Path(file).is_file():
            return {name: _mark(Path(file))}
    except (OSError, ValueError):
        return None
    return None


def change_of(before: Mapping[str, str], now: Mapping[str, str] | None) -> str | None:
    """Returns how what lies at a place differs from what lay there; None if it does not."""
    if now == before:
        return None
    if now is None:
        return "it cannot be read now"
    others = {
        "other contents of": [name for name in before if name in now and before[name] != now[name]],
        "without": [name for name in before if name not in now],
        "now with": [name for name in now if name not in before],
    }
    said = [f"{what} {_listed(names)}" for what, names in others.items() if any(names)]
    return ", ".join(said) or "other contents"


def _listed(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _folder_marks(folder: Path) -> Marks:
    """Returns those of a model's files, and of its base's for an adapter."""
    marks = {file.name: _mark(file) for file in _files(folder)}
    base = adapter_base(folder) if (folder / ADAPTER_FILE).is_file() else None
    if base and (below := model_folder(base)) is not None:
        marks |= {f"{file.name} of the base": _mark(file) for file in _files(below)}
    return marks


def _files(folder: Path) -> list[Path]:
    """Returns a folder's files, without those that only people read."""
    files = sorted(each for each in folder.iterdir() if each.is_file())
    return [file for file in files if file.suffix != ".md" and not file.name.startswith(".")]


def _template_marks(named: str) -> Marks | None:
    try:
        return {"": hashlib.blake2b(read_template(named).encode(), digest_size=20).hexdigest()}
    except ScaleupError:
        return None


def _mark(file: Path) -> str:
    size, digest = file.stat().st_size, hashlib.blake2b(digest_size=20)
    digest.update(f"{size}\0".encode())
    with file.open("rb", buffering=0) as opened:
        for start, count in (*_spread(0, size, BLOCK, BLOCKS), *_of_tensors(file, opened, size)):
            opened.seek(start)
            digest.update(opened.read(count))
    return digest.hexdigest()


def _spread(begin: int, end: int, block: int, count: int) -> Iterator[tuple[int, int]]:
    """Yields where blocks begin that are spread evenly from `begin` to `end`, and their bytes."""
    last = max(0, end - begin - block)
    for start in sorted({begin + part * last // (count - 1) for part in range(count)}):
        yield start, min(block, end - start)


def _of_tensors(file: Path, opened: BinaryIO, size: int) -> Iterator[tuple[int, int]]:
    """Yields the header and blocks of each tensor of a safetensors file: one layer of many may have been trained."""
    if file.suffix != ".safetensors" or size <= BLOCK * BLOCKS:
        return  # a small file was read whole
    opened.seek(0)
    length = int.from_bytes(opened.read(8), "little")
    if length > min(size, MAX_HEADER):
        return  # it is none; who loads it says so
    try:
        header = json.loads(opened.read(length))
        offsets = [part["data_offsets"] for name, part in header.items() if name != "__metadata__"]
        spans = sorted((8 + length + int(begin), 8 + length + int(end)) for begin, end in offsets)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return
    yield 0, 8 + length
    for begin, end in spans:
        yield from _spread(begin, end, TENSOR_BLOCK, TENSOR_BLOCKS)


def texts_of(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Yields the texts within a value, each with its dotted key."""
    if isinstance(value, str):
        yield key, value
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, part in parts:
        yield from texts_of(part, f"{key}.{name}" if key else str(name))
