"""A folder of checkpoints goes in; which of them are whole, which is sound, and which may go comes out."""

from __future__ import annotations

import hashlib
import os
import shutil
import zlib
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

from scaleup.artifacts.files import read_json, write_json
from scaleup.artifacts.manifest import file_sizes
from scaleup.errors import ScaleupError

LISTING = "checkpoint.json"
LAYOUT = "layout.json"
DAMAGED = ".damaged"
"""Stands behind the name of a folder that was a checkpoint."""
IN_MEMORY = Path("/dev/shm")
READ_BYTES = 1 << 20


@dataclass(frozen=True)
class CheckpointFolder:
    """Stands for `checkpoints/step-00000050`, the state after that many optimizer steps."""

    path: Path
    step: int


@dataclass(frozen=True)
class Layout:
    """Tells what wrote a checkpoint, so that whoever reads it need not guess what its files hold."""

    strategy: str
    num_processes: int
    offload: list[str]
    """Tells what was kept in CPU memory: optimizer, parameters."""
    parameters: list[str]
    """Names what was trained, in the optimizer's order."""

    def loads_into(self, other: Layout) -> bool:
        """Return whether the library that wrote the checkpoint loads it there itself. DeepSpeed does only if nothing
        has changed."""
        families = [{"single": "ddp"}.get(layout.strategy, layout.strategy) for layout in (self, other)]
        if families[0] in ("ddp", "fsdp2"):
            return families[0] == families[1]
        return (self.strategy, self.num_processes, self.offload) == (other.strategy, other.num_processes, other.offload)

    def save(self, folder: Path) -> None:
        write_json(folder / LAYOUT, asdict(self))

    @classmethod
    def read(cls, folder: Path) -> Layout:
        """Read a checkpoint's layout. Raises ScaleupError if it has none."""
        try:
            return cls(**read_json(folder / LAYOUT))
        except (OSError, ValueError, TypeError) as error:
            what = f"does not say which strategy wrote it ({error})"
            raise ScaleupError.of(
                str(folder), what, "start the run under another name, or remove this checkpoint"
            ) from error


def checkpoint_folder(checkpoints: Path, step: int) -> Path:
    return checkpoints / f"step-{step:08d}"


def write_listing(aside: Path, step: int, checksums: Mapping[str, int] | None = None) -> None:
    """Write the last file of a checkpoint, which lists the others. A checkpoint without it, or with another size, is
    not whole; one with another checksum is damaged. `checksums` are the CRC-32s by name of all files; None: they are
    computed here."""
    files = file_sizes(aside, ".")
    sums = _checksums(aside, files) if checksums is None else dict(checksums)
    write_json(aside / LISTING, {"step": step, "files": files, "crc32": sums})


def memory_folder(run: Path, part: int | str) -> Path:
    """Return the folder in main memory into which a rank of a run writes its part of a checkpoint, before that goes to
    the disk in the background; or that from which a group reads the policy's weights."""
    key = hashlib.sha256(os.path.realpath(run).encode()).hexdigest()[:16]
    return IN_MEMORY / f"scaleup-{os.getuid()}-{key}-{part}"


def whole_checkpoints(checkpoints: Path) -> list[CheckpointFolder]:
    """Return the whole checkpoints, oldest first: no half-written, truncated or foreign folders."""
    checked = [_look_at(folder) for folder in sorted(checkpoints.glob("step-*"))]
    return [checkpoint for checkpoint in checked if isinstance(checkpoint, CheckpointFolder)]


def _look_at(folder: Path) -> CheckpointFolder | str:
    """Return a whole checkpoint, or why it is none."""
    try:
        listing = read_json(folder / LISTING)
        for name, size in listing["files"].items():
            on_disk = (folder / name).stat().st_size
            if on_disk != size:
                return f"{name} has {on_disk} bytes, and {size} were written"
        if folder == checkpoint_folder(folder.parent, listing["step"]):
            return CheckpointFolder(folder, listing["step"])
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return f"{LISTING} cannot be read"
    return f"its {LISTING} is of step {listing['step']}"


def damage_of(checkpoint: CheckpointFolder) -> str:
    """Return which file differs from what was written, although no size does: reads all files. Empty for a sound
    checkpoint, and for one that was written without checksums. Raises OSError: what cannot be read now may be sound."""
    try:
        listing = read_json(checkpoint.path / LISTING)
        sums = listing.get("crc32", {})
        now = _checksums(checkpoint.path, sums)
    except (ValueError, TypeError, AttributeError) as error:
        return f"its {LISTING} is none ({error})"
    wrong = [name for name in sums if now[name] != sums[name]]
    return f"{wrong[0]} does not match its checksum" if wrong else ""


def newest_sound_checkpoint(checkpoints: Path) -> tuple[CheckpointFolder | None, list[str]]:
    """Return the checkpoint to go on from, and a line for each newer one that is not: which, and why. A damaged one is
    set aside under another name, so that nobody takes it for a checkpoint again. Raises OSError: a file system that
    fails for a moment must not cost checkpoints."""
    lines: list[str] = []
    named = [folder for folder in checkpoints.glob("step-*") if folder.name.removeprefix("step-").isdecimal()]
    for folder in sorted(named, reverse=True):
        checkpoint = why = _look_at(folder)
        if isinstance(checkpoint, CheckpointFolder):
            if not (damage := damage_of(checkpoint)):
                return checkpoint, lines
            _set_aside(folder)
            why = f"{damage}; it is {folder.name}{DAMAGED} now"
        lines.append(f"checkpoint {folder.name} is not used: {why}")
    return None, lines


def _set_aside(folder: Path) -> None:
    aside = folder.with_name(folder.name + DAMAGED)
    shutil.rmtree(aside, ignore_errors=True)
    folder.rename(aside)


def _checksums(folder: Path, names: Iterable[str]) -> dict[str, int]:
    """Compute the CRC-32 of files in threads: zlib lets others run meanwhile."""
    names = list(names)
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        return dict(zip(names, pool.map(lambda name: checksum_of(folder / name), names), strict=True))


def checksum_of(file: Path, write: Callable[[bytes], object] = lambda part: None) -> int:
    """Return the CRC-32 of a file, whose parts are handed to `write` one after the other."""
    checksum = 0
    with file.open("rb", buffering=0) as opened:
        while part := opened.read(READ_BYTES):
            checksum = zlib.crc32(part, checksum)
            write(part)
    return checksum


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
