"""This module writes files and folders that are either whole or absent: aside first, then renamed."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from scaleup.errors import ScaleupError

PROBE_BYTES = 1 << 16


def cache_folder() -> Path:
    """Return `$XDG_CACHE_HOME/scaleup`, or `~/.cache/scaleup`."""
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "scaleup"


def write_text(path: Path, text: str, is_secret: bool = False, is_durable: bool = True) -> None:
    """Replace a file in one step; a secret may be read by this user only. The parent folder must exist. `is_durable`:
    flush it to the disk, which a file that is soon replaced again does not need.

    What stands at the name aside is not written to, but removed: in a folder that others may write to, it could be a
    link of theirs, or a file that they may read."""
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    mode = 0o600 if is_secret else 0o666
    try:
        aside.unlink(missing_ok=True)
        with os.fdopen(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "w", encoding="utf-8") as file:
            file.write(text)
            if is_durable:
                file.flush()
                os.fsync(file.fileno())
        aside.replace(path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise


def write_json(path: Path, value: Any, is_secret: bool = False, is_durable: bool = True) -> None:
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n", is_secret, is_durable)


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def read_json_lines(file: Path) -> list[Any]:
    """Return the lines of a whole file. JSON may hold what Python takes for the end of a line, too: U+2028, U+0085."""
    return [json.loads(line) for line in file.read_text(encoding="utf-8").split("\n") if line]


def folder_bytes(folder: Path, pattern: str = "*") -> int:
    """Return the bytes of the files in a folder whose names match the pattern, those of folders in it aside."""
    return sum(file.stat().st_size for file in folder.glob(pattern) if file.is_file())


def write_problem(folder: Path) -> str:
    """Return why nothing can be written to a folder, e.g. `No space left on device`; empty where it can."""
    probe = folder / f".probe.{os.getpid()}.tmp"
    try:
        if _takes_unnamed(folder):
            return ""
        probe.write_bytes(bytes(PROBE_BYTES))
        return ""
    except OSError as error:
        return error.strerror or str(error)
    finally:
        with suppress(OSError):
            probe.unlink()


def reason_of(error: Exception, folder: Path) -> str:
    """Return why a file could not be written: torch speaks of positions in an archive where a disk is full, while
    nothing else can be written to the folder either."""
    return str(error) if is_of_files(error) else write_problem(folder) or str(error)


def _takes_unnamed(folder: Path) -> bool:
    """Writes a file without a name, which leaves no trace, not even in the folder's times. Return False where the file
    system has none; raises OSError where it takes nothing."""
    try:
        descriptor = os.open(folder, os.O_TMPFILE | os.O_WRONLY, 0o600)
    except OSError as error:
        if error.errno in (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL, errno.ENOENT):
            return False
        raise
    with os.fdopen(descriptor, "wb") as file:
        file.write(bytes(PROBE_BYTES))
    return True


def folder_problem(folder: Path) -> str:
    """Returns why a folder cannot be written or, where it is not there yet, be made; empty where it can."""
    place = folder.absolute()
    try:
        while not _is_there(place):
            place = place.parent
        if not place.exists():
            return f"{place} is a link to {place.readlink()}, which is not there"
        if not place.is_dir():
            return f"{place} is no folder"
    except (OSError, ValueError) as error:
        return f"{place}: {getattr(error, 'strerror', None) or error}"
    why = write_problem(place)
    return f"{place}: {why}" if why and place != folder.absolute() else why


def _is_there(place: Path) -> bool:
    """Returns whether there is anything, be it a link that leads nowhere. Raises OSError where that cannot be told,
    e.g. for a name that is too long."""
    try:
        place.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def aside_of(folder: Path) -> Path:
    """Return where a folder is written before it is renamed. The leading dot keeps it out of every listing of whole
    ones."""
    return folder.with_name(f".{folder.name}.tmp")


@contextmanager
def folder_aside(folder: Path) -> Iterator[Path]:
    """Write a folder aside; it appears under its name, whole, when the block ends, and leaves nothing when it fails.

    Raises ScaleupError at the folder where the file system is the reason."""
    aside = aside_of(folder)
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    try:
        yield aside
        commit_folder(folder)
    except BaseException as error:
        shutil.rmtree(aside, ignore_errors=True)
        if is_of_files(error):
            remedy = "make room on the disk, or mend it, then continue with --resume"
            raise ScaleupError.of(str(folder), f"cannot be written: {error}", remedy) from error
        raise


def is_of_files(error: BaseException) -> bool:
    """Return whether the file system is the reason for an error: safetensors has an error of its own, which says so in
    its text."""
    return isinstance(error, OSError) or "(os error " in str(error)


def commit_folder(folder: Path) -> None:
    """Flush what was written aside to the disk and give it its name. An older folder of that name is replaced."""
    aside = aside_of(folder)
    for file in sorted(aside.rglob("*")):
        if file.is_file():
            with file.open("rb") as opened:
                os.fsync(opened.fileno())
    old = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    try:
        aside.rename(folder)
    except BaseException:
        if old.exists():
            old.rename(folder)
        raise
    shutil.rmtree(old, ignore_errors=True)
