"""This module holds what the data sections of several trainers have in common: where rows are, and their formats."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from scaleup.config.convert.draft import Draft

FILE = re.compile(r"\.(jsonl?|csv|tsv|parquet|arrow|txt)(\.(gz|bz2|xz|zst))?$")
KINDS = ("json", "csv", "parquet", "arrow", "text")
"""Names what `datasets` calls a kind of file, in the place of a dataset's name."""
FORMAT_KEYS = (
    "prompt",
    "completion",
    "template",
    "columns",
    "messages",
    "tools",
    "text",
    "chosen",
    "rejected",
    "label",
)
STATE = "<- state the format of its rows: docs/data.md"
Source = dict[str, Any]


def is_hub(path: str) -> bool:
    """Tells whether a path names a dataset of a hub, and no file or folder."""
    looks = re.fullmatch(r"[\w.-]+(/[\w.-]+)?", path)
    return bool(looks) and not FILE.search(path) and not Path(path).exists() and not path.startswith(".")


def source(path: str, files: Any = None, split: Any = None, name: Any = None) -> list[Source]:
    """Returns the sources of a dataset as `datasets.load_dataset` is asked for it."""
    listed = [files] if isinstance(files, str) else list(files or [])
    if listed and path in KINDS:
        return [{"path": str(each)} for each in listed]
    if listed and not is_hub(path):
        return [{"path": str(Path(path) / each)} for each in listed]
    found: Source = {"path": path}
    if is_hub(path):
        found["split"] = str(split or "train")
        if name is not None:
            found["name"] = str(name)
    return [found]


def put_sources(draft: Draft, splits: Mapping[str, Sequence[Source]]) -> None:
    """Sets the sources of each split (`train`, `validation`). A format that all share stands in `data` itself."""
    every = [each for sources in splits.values() for each in sources]
    formats = [{key: each[key] for key in FORMAT_KEYS if key in each} for each in every]
    shared = formats[0] if formats and all(each == formats[0] for each in formats) else {}
    for split, sources in splits.items():
        bare = [{key: value for key, value in each.items() if key not in shared} for each in sources]
        plain = [each["path"] if set(each) == {"path"} else each for each in bare]
        if plain:
            draft.put(f"data.{split}", plain[0] if len(plain) == 1 and isinstance(plain[0], str) else plain)
    for key, value in shared.items():
        draft.put(f"data.{key}", value)


def named(text: str, columns: Mapping[str, str]) -> str:
    """Returns a template in which fields are replaced by the columns that hold them."""
    return re.sub(r"\{(\w+)\}", lambda found: "{" + columns.get(found[1], found[1]) + "}", text)
