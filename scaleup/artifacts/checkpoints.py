"""Names of checkpoints, which of them are whole, and which may go."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from scaleup.artifacts.files import read_json, write_json
from scaleup.artifacts.manifest import file_sizes

LISTING = "checkpoint.json"


@dataclass(frozen=True)
class CheckpointFolder:
    """`checkpoints/step-00000050`: the state after that many optimizer steps."""

    path: Path
    step: int


def checkpoint_folder(checkpoints: Path, step: int) -> Path:
    return checkpoints / f"step-{step:08d}"


def write_listing(aside: Path, step: int) -> None:
    """The last file of a checkpoint: what it consists of. Without it, or when a size differs, it is not whole."""
    write_json(aside / LISTING, {"step": step, "files": file_sizes(aside, ".")})


def whole_checkpoints(checkpoints: Path) -> list[CheckpointFolder]:
    """Oldest first. Half-written, truncated or foreign folders are not among them."""
    found = []
    for folder in sorted(checkpoints.glob("step-*")):
        try:
            listing = read_json(folder / LISTING)
            sizes_match = all((folder / name).stat().st_size == size for name, size in listing["files"].items())
            if sizes_match and folder == checkpoint_folder(checkpoints, listing["step"]):
                found.append(CheckpointFolder(folder, listing["step"]))
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue  # not whole, so not a checkpoint: nothing may be resumed from it
    return found


def latest_checkpoint(checkpoints: Path) -> CheckpointFolder | None:
    return max(whole_checkpoints(checkpoints), key=lambda checkpoint: checkpoint.step, default=None)


def prune_checkpoints(checkpoints: Path, keep: int, also: int | None) -> None:
    """Leave the newest `keep` checkpoints and the one of step `also`; remove what interrupted writes left behind."""
    whole = whole_checkpoints(checkpoints)
    for checkpoint in whole[: max(0, len(whole) - keep)]:
        if checkpoint.step != also:
            shutil.rmtree(checkpoint.path)
    for leftover in checkpoints.glob(".step-*"):
        shutil.rmtree(leftover, ignore_errors=True)
