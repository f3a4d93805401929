"""Names of checkpoints, which of them are whole, and which may go."""

from __future__ import annotations

import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

from scaleup.artifacts.files import read_json, write_json
from scaleup.artifacts.manifest import file_sizes
from scaleup.errors import ScaleupError

LISTING = "checkpoint.json"
LAYOUT = "layout.json"


@dataclass(frozen=True)
class CheckpointFolder:
    """`checkpoints/step-00000050`: the state after that many optimizer steps."""

    path: Path
    step: int


@dataclass(frozen=True)
class Layout:
    """What wrote a checkpoint, so that whoever reads it need not guess what its files hold."""

    strategy: str
    num_processes: int
    offload: list[str]
    """What was kept in CPU memory: optimizer, parameters."""
    parameters: list[str]
    """Names of what was trained, in the optimizer's order."""

    def loads_into(self, other: Layout) -> bool:
        """Whether the library that wrote it loads it there itself. DeepSpeed does only where nothing has changed."""
        families = [{"single": "ddp"}.get(layout.strategy, layout.strategy) for layout in (self, other)]
        if families[0] in ("ddp", "fsdp2"):
            return families[0] == families[1]
        return (self.strategy, self.num_processes, self.offload) == (other.strategy, other.num_processes, other.offload)

    def save(self, folder: Path) -> None:
        write_json(folder / LAYOUT, asdict(self))

    @classmethod
    def read(cls, folder: Path) -> Layout:
        """Raises ScaleupError when the checkpoint does not say what wrote it."""
        try:
            return cls(**read_json(folder / LAYOUT))
        except (OSError, ValueError, TypeError) as error:
            what = f"does not say which strategy wrote it ({error})"
            raise ScaleupError.of(
                str(folder), what, "start the run under another name, or remove this checkpoint"
            ) from error


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
