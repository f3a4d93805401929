"""This module reads and writes the manifest: written last, atomically, by rank 0. A run without one is not finished."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from scaleup.artifacts.files import write_json
from scaleup.artifacts.lineage import Lineage


class Manifest(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    stage: str
    name: str
    scaleup_version: str
    finished_at: str
    """Gives the time in UTC, ISO 8601."""
    num_steps: int | None
    metrics: dict[str, Any]
    files: dict[str, int]
    """Maps path inside the run folder -> size in bytes, of what the run leaves for others."""
    lineage: Lineage | None = None
    """Tells what made the run; None of a run of an earlier version."""


def write_manifest(path: Path, manifest: Manifest) -> None:
    write_json(path, manifest.model_dump(mode="json"))


def file_sizes(root: Path, *parts: str) -> dict[str, int]:
    """Return every file under the named parts of a folder, with its size in bytes."""
    files: list[Path] = []
    for part in parts:
        place = root / part
        files += [place] if place.is_file() else [file for file in place.rglob("*") if file.is_file()]
    return {str(file.relative_to(root)): file.stat().st_size for file in sorted(files)}
