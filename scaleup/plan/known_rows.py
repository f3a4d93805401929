"""This module remembers that rows have been checked: of large files that are as they were, a plan reads nothing again.
What is remembered lies in the user's cache, under a key of the files' times and sizes, of the data section and of the
code that checks."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Container, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import scaleup
from scaleup.artifacts.data_file import is_settled, stamp_of
from scaleup.artifacts.files import cache_folder, read_json, write_json
from scaleup.config.data import DataConfig
from scaleup.errors import ScaleupError
from scaleup.records.check import DataCheck, SourceSummary, check_data
from scaleup.records.formats import data_files, local_path

LEAST_BYTES = 1 << 22
"""Is how large all files together are that are remembered: checking others again takes no time."""


def known_check(
    data: DataConfig, splits: Sequence[str], max_rows: int | None, prompts_only: Container[str]
) -> DataCheck:
    """Returns what `check_data` does. What it found mistakes in is not remembered, nor are rows with a class, whose
    labels are compared with a model's."""
    place = _place(data, splits, max_rows, prompts_only)
    if place is not None and (known := _read(place)) is not None:
        return known
    check = check_data(data, splits, max_rows, prompts_only)
    has_labels = any(summary.labels.counts for split in check.sources.values() for summary in split)
    if place is not None and not check.problems and not has_labels:
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            write_json(place, {"sources": _plain(check), "notes": list(check.notes)})
        except OSError:
            pass  # a cache that cannot be written only costs time
    return check


def _place(data: DataConfig, splits: Sequence[str], max_rows: int | None, prompts_only: Container[str]) -> Path | None:
    """Returns the file where a check is remembered; None where files are small, have just been changed, or cannot be
    read."""
    parts: list[Any] = [data.model_dump(mode="json"), [[split, split in prompts_only] for split in splits], max_rows]
    size = 0
    try:
        for split in splits:
            for source in getattr(data, split) or []:
                path = local_path(data, source, split)
                for file in data_files(path) if path else []:
                    status, stamp = file.stat(), stamp_of(file)
                    if stamp is None or not is_settled(status):
                        return None
                    size += status.st_size
                    parts.append([str(file), *stamp])
    except (ScaleupError, OSError):
        return None
    if size < LEAST_BYTES:
        return None
    package = Path(scaleup.__file__).parent
    parts += [file.read_text(encoding="utf-8") for file in sorted((package / "records").glob("*.py"))]
    key = hashlib.sha256(json.dumps([type(data).__name__, *parts]).encode()).hexdigest()[:32]
    return cache_folder() / "rows" / f"check-{key}.json"


def _plain(check: DataCheck) -> dict[str, list[dict[str, Any]]]:
    def plain(summary: SourceSummary) -> dict[str, Any]:
        values = asdict(summary)
        del values["labels"]
        return values | {"left_out": dict(summary.left_out), "notes": list(summary.notes)}

    return {split: [plain(summary) for summary in summaries] for split, summaries in check.sources.items()}


def _read(place: Path) -> DataCheck | None:
    try:
        known: Mapping[str, Any] = read_json(place)
        sources = {split: [_summary(**values) for values in each] for split, each in known["sources"].items()}
        return DataCheck([], sources, list(known["notes"]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _summary(left_out: Mapping[str, int], notes: Sequence[str], **values: Any) -> SourceSummary:
    return SourceSummary(left_out=Counter(left_out), notes=tuple(notes), **values)
