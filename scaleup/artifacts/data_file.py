"""This module knows the rows that a run began with: `data.json` in its folder holds a fingerprint of every source it
reads, and of the models it names (plan/places.py). A source is known by its bytes, wherever it lies and whatever it is
called; of one with `max_rows` by those rows; a dataset of a hub by its revision there."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from scaleup.artifacts.files import cache_folder, read_json, write_json
from scaleup.config.data import DataConfig, SourceConfig
from scaleup.errors import ScaleupError
from scaleup.records.formats import data_files, local_path, read_rows
from scaleup.records.remote import RemotePath

READ_BYTES = 1 << 20
CACHED_BYTES = 1 << 26
"""A file of so many bytes is not read again as long as it stays as it is."""
SETTLED_SECONDS = 2.0
"""A file whose last change is younger may change again without another time stamp: what it holds is not cached."""
OF_LINES = (".jsonl", ".ndjson", ".csv", ".tsv")
HUB_SECONDS = 10.0
LONG_BYTES = 1 << 33
"""Reading so many bytes takes ten seconds and more."""

Say = Callable[[str], None]


def _silent(line: str) -> None:
    pass


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True)


class FileMark(_Frozen):
    """Stands for what one file holds."""

    name: str
    bytes: int
    lines: int | None = None
    """Counts them where a row is a line."""
    blake2b: str

    @property
    def size(self) -> str:
        return f"{self.bytes:,} bytes" if self.lines is None else f"{self.lines:,} lines"


class SourceMark(_Frozen):
    """Stands for the rows of one source: of files, of the first rows alone, or of a hub's dataset."""

    path: str
    files: tuple[FileMark, ...] = ()
    rows: int | None = None
    """Counts them where `max_rows` bounds them; `blake2b` is of their values."""
    blake2b: str | None = None
    revision: str | None = None
    """Is the hub's, if it could be had."""
    is_hub: bool = False

    def change(self, now: SourceMark) -> str | None:
        """Returns how the source differs from what it was; None if it does not, or if that cannot be known."""
        if self.is_hub or now.is_hub:
            return self._hub_change(now)
        if self.rows is not None or now.rows is not None:
            if self.blake2b == now.blake2b:
                return None
            return f"{self.rows or 0:,} rows then, {now.rows or 0:,} rows now" if self.rows != now.rows else OTHER_ROWS
        if [file.blake2b for file in self.files] == [file.blake2b for file in now.files]:
            return None
        if len(self.files) != len(now.files):
            return f"{len(self.files)} files then, {len(now.files)} files now"
        pairs = [(a, b) for a, b in zip(self.files, now.files, strict=True) if a.blake2b != b.blake2b]
        before, after = pairs[0]
        sizes = OTHER_ROWS if before.size == after.size else f"{before.size} then, {after.size} now"
        which = f"{after.name}: " if len(now.files) > 1 else ""
        return which + sizes + (f"; and {len(pairs) - 1} more files" if len(pairs) > 1 else "")

    def _hub_change(self, now: SourceMark) -> str | None:
        if self.is_hub != now.is_hub or self.path != now.path:
            return f"{self.path} then, {now.path} now"
        if self.revision == now.revision or None in (self.revision, now.revision):
            return None
        return f"revision {self.revision} then, {now.revision} now"


OTHER_ROWS = "as many rows as then, but others, or in another order"


class RunData(_Frozen):
    """Is what `data.json` holds."""

    sources: dict[str, SourceMark]
    """Maps a source's key in the config, e.g. data.train.0 -> what it holds."""
    places: dict[str, dict[str, str]] = {}
    """Maps the key of a model, an adapter, a function or a template that lies on this machine -> a hash of what each of
    its files holds."""
    accepted: tuple[str, ...] = ()
    """Tells of each change that the user accepted."""

    def save(self, path: Path) -> None:
        write_json(path, self.model_dump(mode="json"))

    @classmethod
    def read(cls, path: Path) -> RunData | None:
        """Returns a run's fingerprint, None if it has none. Raises ScaleupError if it cannot be read."""
        try:
            return cls.model_validate(read_json(path))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, ValidationError) as error:
            what = f"cannot be read ({type(error).__name__}): whether the run's rows are still the same is not known"
            raise ScaleupError.of(str(path), what, "remove it if they are") from None


def models_known_at(path: Path) -> str:
    """Returns what a run's models and functions are known by, as text: what was made with them is made again where
    others were accepted."""
    known = RunData.read(path)
    return json.dumps(known.places, sort_keys=True) if known else ""


def source_marks(data: DataConfig, splits: Iterable[str], say: Say = _silent) -> dict[str, SourceMark]:
    """Returns what each source of these splits holds now, by its key; `say` hears of files whose reading takes a while.
    Raises ScaleupError as reading does."""
    return {
        f"data.{split}.{place}": _mark(data, source, split, say)
        for split in splits
        for place, source in enumerate(getattr(data, split) or [])
    }


def _mark(data: DataConfig, source: SourceConfig, split: str, say: Say) -> SourceMark:
    path = local_path(data, source, split)
    if path is None:
        return SourceMark(path=source.path, is_hub=True, revision=hub_revision(source.path))
    if source.max_rows is not None:
        digest, count = hashlib.blake2b(digest_size=20), 0
        for row in islice(read_rows(path), source.max_rows):
            digest.update(json.dumps(row.values, sort_keys=True, default=str).encode("utf-8", "surrogatepass") + b"\n")
            count += 1
        return SourceMark(path=source.path, rows=count, blake2b=digest.hexdigest())
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        try:
            return SourceMark(path=source.path, files=tuple(pool.map(partial(file_mark, say=say), data_files(path))))
        except OSError as error:
            raise ScaleupError.of(str(path), f"cannot be read: {error.strerror or error}", "see to the file") from None


def file_mark(file: Path, say: Say = _silent) -> FileMark:
    """Returns what a file holds; of a large one that has not changed since, from the user's cache, and of one on
    another machine by what is said of it there, since looking would be fetching it."""
    if isinstance(file, RemotePath) and (version := file.version) is not None:
        known_by = hashlib.blake2b(version.encode(), digest_size=20).hexdigest()
        return FileMark(name=file.name, bytes=file.stat().st_size, blake2b=known_by)
    status, cached, stamp = file.stat(), None, stamp_of(file)
    if status.st_size >= CACHED_BYTES and stamp is not None:
        place = hashlib.sha256(str(file.resolve()).encode("utf-8", "surrogateescape")).hexdigest()[:32]
        cached = cache_folder() / "rows" / f"{place}.json"
        if (known := _cached(cached, stamp)) is not None:
            return known.model_copy(update={"name": file.name})
    if status.st_size >= LONG_BYTES:
        say(f"reading {file} once ({status.st_size / 2**30:.0f} GiB), to know its rows again")
    mark = _read_mark(file)
    if cached is not None and is_settled(status):
        try:
            cached.parent.mkdir(parents=True, exist_ok=True)
            write_json(cached, {"stamp": stamp, "mark": mark.model_dump(mode="json")})
        except OSError:
            pass  # a cache that cannot be written only costs time
    return mark


def stamp_of(file: Path) -> list[int] | None:
    """Returns what changes with a file; None of one on another machine where nothing is told that would."""
    if isinstance(file, RemotePath) and file.version is None:
        return None
    status = file.stat()
    return [status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns]


def is_settled(status: os.stat_result) -> bool:
    """Returns whether a file that changes from now on will have other times."""
    return abs(time.time() - status.st_ctime) > SETTLED_SECONDS


def _cached(place: Path, stamp: list[int]) -> FileMark | None:
    try:
        known: Mapping[str, object] = read_json(place)
        return FileMark.model_validate(known["mark"]) if known["stamp"] == stamp else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _read_mark(file: Path) -> FileMark:
    digest, size, lines, end = hashlib.blake2b(digest_size=20), 0, 0, b"\n"
    with file.open("rb", buffering=0) as opened:
        while part := opened.read(READ_BYTES):
            digest.update(part)
            size, lines, end = size + len(part), lines + part.count(b"\n"), part[-1:]
    counted = lines + (end != b"\n") if file.suffix.lower() in OF_LINES else None
    return FileMark(name=file.name, bytes=size, lines=counted, blake2b=digest.hexdigest())


def hub_revision(name: str) -> str | None:
    """Returns the commit of a hub's dataset: what the hub says or, where it cannot be asked, what its cache on this
    machine holds. None where neither is known."""
    try:
        from huggingface_hub import HfApi
        from huggingface_hub.constants import HF_HUB_CACHE, HF_HUB_OFFLINE
    except ImportError:
        return None
    if not HF_HUB_OFFLINE:
        try:
            return HfApi().dataset_info(name, timeout=HUB_SECONDS).sha
        except Exception:
            pass  # no network, no such name, no right to see it: whoever loads it says so
    folder = f"datasets--{name.replace('/', '--')}"
    try:
        return (Path(HF_HUB_CACHE) / folder / "refs" / "main").read_text(encoding="utf-8").strip() or None
    except (OSError, ValueError):
        return None
