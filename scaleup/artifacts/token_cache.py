"""This module keeps rows that have been tokenized, in the user's cache: a folder an entry, named by a hash of all that
it follows from, whole or absent. It knows nothing of what a file of tokens holds.

Each entry has two locks of the kernel's, which end with their holders: one is held alone by who makes it, one together
by all who read it. So two runs make an entry once, and what a run reads is not cleared under it."""

from __future__ import annotations

import fcntl
import os
import shutil
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scaleup.artifacts.files import (
    aside_of,
    cache_folder,
    commit_folder,
    folder_bytes,
    folder_problem,
    is_of_files,
    read_json,
    write_json,
)
from scaleup.errors import ScaleupError

LIMIT = "tokens-limit.json"
"""Names the file, in the user's cache, that says how many GiB all entries may take together."""
DEFAULT_GIB = 64.0
POLL_SECONDS = 0.1
ROWS, ABOUT = "rows.arrow", "about.json"
USE, MAKE = "use.lock", "make.lock"
READ_BYTES = 1 << 20

Say = Callable[[str], None]


@dataclass(frozen=True)
class Entry:
    """Is one folder of the cache."""

    folder: Path

    @property
    def key(self) -> str:
        return self.folder.name

    @property
    def rows_file(self) -> Path:
        return self.folder / ROWS

    @property
    def about(self) -> Mapping[str, Any]:
        """Holds what the entry's maker said of it. Raises OSError and ValueError."""
        return dict(read_json(self.folder / ABOUT))

    @property
    def used(self) -> float:
        """Is when the entry was used last, in seconds since 1970."""
        try:
            return (self.folder / ABOUT).stat().st_mtime
        except OSError:
            return 0.0

    @property
    def bytes(self) -> int:
        return folder_bytes(self.folder)

    def damage(self) -> str:
        """Returns what is wrong with the file of rows, of which every byte is looked at; empty where nothing is."""
        try:
            about = self.about
            size = self.rows_file.stat().st_size
            if size != about["bytes"]:
                return f"it has {size:,} bytes instead of {about['bytes']:,}"
            if checksum(self.rows_file) != about["crc32"]:
                return "its bytes are not those that were written"
        except (OSError, ValueError, KeyError, TypeError) as error:
            return str(getattr(error, "strerror", None) or repr(error))
        return ""


@dataclass(frozen=True)
class Held:
    """Is an entry that stays as long as this object does."""

    entry: Entry
    lock: Lock


class Lock:
    """Is a lock of one entry, which the kernel takes back when this process ends."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._descriptor = -1

    def take(self, alone: bool) -> bool:
        """Takes the lock, or changes how it is held; returns False where others have it. Raises OSError."""
        if self._descriptor < 0:
            self._descriptor = os.open(self._file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_UN)  # NFS would keep a lock that cannot be changed
            fcntl.flock(self._descriptor, (fcntl.LOCK_EX if alone else fcntl.LOCK_SH) | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        if self._is_current():
            return True
        self.release()  # whoever cleared the entry has removed the file that we have waited for
        return False

    def release(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _is_current(self) -> bool:
        try:
            now, ours = self._file.stat(), os.fstat(self._descriptor)
        except FileNotFoundError:
            return False
        return (now.st_dev, now.st_ino) == (ours.st_dev, ours.st_ino)

    def __del__(self) -> None:
        with suppress(OSError):
            self.release()


class TokenCache:
    """Is the folder of all entries: `tokens` in the user's cache."""

    def __init__(self) -> None:
        self.folder = cache_folder() / "tokens"

    def held(
        self,
        key: str,
        make: Callable[[Path], Mapping[str, Any]],
        on_wait: Callable[[], None],
        say: Say,
    ) -> Held:
        """Returns an entry, which is made if it is not there or damaged: `make` fills a folder, writes the file of rows
        there, and returns what is to be known of it. Where another process makes it, waits, and calls `on_wait` on and
        on. `say` hears of damage.

        Raises ScaleupError where the folder cannot be written, and what `make` raises."""
        entry, use, making = Entry(self.folder / key), self._lock(key, USE), self._lock(key, MAKE)
        try:
            while True:
                self._take(use, False, on_wait)
                if not entry.damage():
                    break
                self._take(making, True, on_wait)
                damage = entry.damage()  # another process may have made it meanwhile
                if damage and entry.folder.exists():
                    say(f"{entry.rows_file} is damaged: {damage}; it is made again")
                if damage:
                    self._make(entry, make)
                    self._bound(key)
                making.release()
        finally:
            making.release()
        with suppress(OSError):
            os.utime(entry.folder / ABOUT)
        return Held(entry, use)

    def entries(self) -> list[Entry]:
        """Returns all entries, the one used last first."""
        if not self.folder.is_dir():
            return []
        found = [Entry(each) for each in self.folder.iterdir() if each.is_dir() and not each.name.startswith(".")]
        return sorted(found, key=lambda entry: -entry.used)

    def clear(self, entry: Entry) -> bool:
        """Removes an entry; returns False where a run reads it. Raises OSError."""
        locks = [Lock(self._lock_file(entry.key, what)) for what in (USE, MAKE)]
        try:
            if not all(lock.take(alone=True) for lock in locks):
                return False
            shutil.rmtree(entry.folder)
            for what in (USE, MAKE):
                self._lock_file(entry.key, what).unlink()
            return True
        finally:
            for lock in locks:
                lock.release()

    def _lock_file(self, key: str, what: str) -> Path:
        return self.folder / f".{key}.{what}"

    def _lock(self, key: str, what: str) -> Lock:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise self._unwritable(error) from error
        return Lock(self._lock_file(key, what))

    def _take(self, lock: Lock, alone: bool, on_wait: Callable[[], None]) -> None:
        try:
            while not lock.take(alone):
                on_wait()
                time.sleep(POLL_SECONDS)
        except OSError as error:
            raise self._unwritable(error) from error

    def _make(self, entry: Entry, make: Callable[[Path], Mapping[str, Any]]) -> None:
        aside = aside_of(entry.folder)
        try:
            shutil.rmtree(aside, ignore_errors=True)  # of a process that was killed
            aside.mkdir()
            about = dict(make(aside / ROWS))
            about |= {"bytes": (aside / ROWS).stat().st_size, "crc32": checksum(aside / ROWS), "made": time.time()}
            write_json(aside / ABOUT, about)
            commit_folder(entry.folder)
        except BaseException as error:
            shutil.rmtree(aside, ignore_errors=True)
            if is_of_files(error):
                raise self._unwritable(error) from error
            raise

    def _bound(self, key: str) -> None:
        """Removes what has not been used for longest, until the cache is as small as it is to be."""
        entries = self.entries()
        sizes = {entry.key: entry.bytes for entry in entries}
        total, most = sum(sizes.values()), limit_bytes()
        for entry in reversed(entries):
            if total <= most:
                return
            with suppress(OSError):
                if entry.key != key and self.clear(entry):
                    total -= sizes[entry.key]

    def _unwritable(self, error: BaseException) -> ScaleupError:
        why = folder_problem(self.folder) or getattr(error, "strerror", None) or str(error)
        remedy = "make room there, or set XDG_CACHE_HOME to a folder that can be written"
        return ScaleupError.of(str(self.folder), f"cannot be written, where tokens of rows are kept: {why}", remedy)


def limit_bytes() -> int:
    """Returns how large the cache may become. Raises ScaleupError where the file that says it cannot be read."""
    file = cache_folder() / LIMIT
    try:
        return int(float(read_json(file)["gib"]) * 2**30)
    except FileNotFoundError:
        return int(DEFAULT_GIB * 2**30)
    except (OSError, ValueError, KeyError, TypeError, OverflowError) as error:
        raise ScaleupError.of(str(file), f"says no limit: {error}", "`scaleup cache limit GIB` sets one") from error


def set_limit(gib: float) -> None:
    """Says how many GiB the cache may take from now on. Raises ScaleupError where that cannot be kept."""
    file = cache_folder() / LIMIT
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(file, {"gib": gib})
    except OSError as error:
        remedy = "set XDG_CACHE_HOME to a folder that can be written"
        raise ScaleupError.of(str(file), f"cannot be written: {error.strerror or error}", remedy) from error


def checksum(file: Path) -> int:
    """Returns the CRC-32 of a file's bytes."""
    found = 0
    for part in _parts(file):
        found = zlib.crc32(part, found)
    return found


def _parts(file: Path) -> Iterator[bytes]:
    with file.open("rb", buffering=0) as opened:
        while part := opened.read(READ_BYTES):
            yield part
