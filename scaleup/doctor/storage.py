"""This module examines whether a run can write its folder: with space for its checkpoints, how fast, and by whose
clock."""

from __future__ import annotations

import os
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from scaleup.artifacts.files import folder_problem
from scaleup.doctor.finding import Finding, fail, ok, size_text, warn

PROBE, BLOCK = 64 * 2**20, 2**20
"""Count the bytes that are written to measure, and those at a time."""
SLOW_SECONDS = 300.0
"""Bounds the seconds of a checkpoint: one that takes longer is worth a word, since all ranks wait for it."""
WARN_SKEW, FAIL_SKEW = 2.0, 60.0
"""Bound the seconds between two clocks: from where logs mislead, and from where certificates and `make` do."""


@dataclass(frozen=True)
class Need:
    """Estimates the bytes that a run writes."""

    checkpoint: int
    kept: int
    """Counts the checkpoints that exist at the same time at most, with the one that is written aside."""
    model: int

    @property
    def total(self) -> int:
        return self.checkpoint * self.kept + self.model


def storage_findings(runs_dir: Path, need: Need | None = None) -> Iterator[Finding]:
    """Check the folder of runs. Writes a file of 64 MiB into the folder, or into the one that it will be made in, and
    removes it."""
    if why := folder_problem(runs_dir):
        yield _unwritable(runs_dir, why)
        return
    folder = existing(runs_dir)
    try:
        speed, skew = _probe(folder)
    except OSError as error:
        yield _unwritable(folder, error.strerror or str(error))
        return
    yield ok("runs_dir", f"{runs_dir} can be written" + ("" if folder == runs_dir else f" (made in {folder})"))
    yield clock_finding("clock", f"{folder}'s file system is", skew)
    yield space_finding(folder, shutil.disk_usage(folder).free, need)
    yield _speed(folder, speed, need)


def _unwritable(folder: Path, why: str) -> Finding:
    return fail("runs_dir", f"{folder} cannot be written: {why}", "set runs_dir to a folder that can, with space left")


def existing(folder: Path) -> Path:
    """Return the folder, or the nearest one above it that exists."""
    folder = folder.absolute()
    return next(place for place in (folder, *folder.parents) if place.exists())


def clock_finding(name: str, whose: str, skew: float) -> Finding:
    """Compare clocks: `skew` is how many seconds another one is ahead of this host's."""
    direction = "ahead of" if skew > 0 else "behind"
    what = f"{whose} {abs(skew):,.1f} s {direction} this host's clock"
    remedy = "synchronise the clocks (chrony, systemd-timesyncd)"
    if abs(skew) > FAIL_SKEW:
        return fail(name, what, remedy)
    if abs(skew) > WARN_SKEW:
        return warn(name, what, remedy)
    return ok(name, f"{whose} within {WARN_SKEW:g} s of this host's clock")


def space_finding(folder: Path, free: int, need: Need | None) -> Finding:
    has = f"{size_text(free)} free in {folder}"
    if need is None:
        return ok("disk space", has)
    wants = f"the run needs about {size_text(need.total)} (estimate: {need.kept} checkpoints of "
    wants += f"{size_text(need.checkpoint)} at a time, and a model of {size_text(need.model)})"
    remedy = "free space, set runs_dir elsewhere, or lower train.save_total_limit"
    if free < need.total:
        return fail("disk space", f"{has}, and {wants}", remedy)
    if free < 1.5 * need.total:
        return warn("disk space", f"{has}, and {wants}", remedy)
    return ok("disk space", f"{has}; {wants}")


def _speed(folder: Path, speed: float, need: Need | None) -> Finding:
    what = f"{speed / 2**20:,.0f} MiB/s into {folder}, by one process"
    if need is None:
        return ok("write speed", what)
    seconds = need.checkpoint / speed
    what += f": a checkpoint takes about {seconds:,.1f} s (estimate)"
    if seconds > SLOW_SECONDS:
        return warn("write speed", what, "set runs_dir to a faster file system, or save less often (train.save_steps)")
    return ok("write speed", what)


def _probe(folder: Path) -> tuple[float, float]:
    """Measure the bytes per second down to the disk, and by how many seconds the file system's clock is ahead."""
    block = os.urandom(BLOCK)  # some file systems compress
    file = folder / f".scaleup-doctor-{secrets.token_hex(6)}"
    try:
        with file.open("xb") as opened:
            begun = time.perf_counter()
            for _ in range(PROBE // BLOCK):
                opened.write(block)
            opened.flush()
            os.fsync(opened.fileno())
            taken = time.perf_counter() - begun
        with file.open("ab") as opened:
            opened.write(b"\n")
        return PROBE / taken, file.stat().st_mtime - time.time()
    finally:
        with suppress(OSError):
            file.unlink(missing_ok=True)
