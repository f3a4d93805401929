"""What a run reads from the file system of the machine where its job is made: a container has to have it too."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from scaleup.config.schema import RunConfig

NAMES = ("path", "tokenizer", "function")
"""Keys that name a folder or a file, or something else: a hub's name, `package:...`, `builtin:...`."""


def local_paths(config: RunConfig) -> Iterator[tuple[str, Path]]:
    """Config key and absolute path of each folder and file that is there. `data.root` where a source is relative to it;
    not `runs_dir`, which is written."""
    values: dict[str, Any] = config.model_dump(mode="json", exclude={"cluster", "runs_dir"})
    data, adapters = values.pop("data"), values.pop("adapters", None) or {}
    sources = [source["path"] for split in ("train", "validation", "test") for source in data.get(split) or []]
    root = Path(config.data.root)
    relative = [Path(source) for source in sources if not Path(source).expanduser().is_absolute()]
    if any(source.suffix or (root / source).exists() for source in relative):  # else rows of a hub
        yield "data.root", root
    named = [
        *_named(data, "data"),
        *_named(values, ""),
        *((f"adapters.{name}", path) for name, path in adapters.items()),
    ]
    for key, value in named:
        file = value.rpartition(":")[0] if key.endswith(".function") else value
        if file.startswith("/") and Path(file).exists():
            yield key, Path(file)


def _named(value: Any, key: str) -> Iterator[tuple[str, str]]:
    parts = enumerate(value) if isinstance(value, list) else value.items() if isinstance(value, dict) else ()
    for name, part in parts:
        here = f"{key}.{name}".lstrip(".")
        if isinstance(part, str):
            if name in NAMES:
                yield here, part
        else:
            yield from _named(part, here)
