"""Files of other machines, by `fsspec`: `s3://`, `gs://`, `hf://` and whatever else it has a package for. Credentials
come from the environment, as these packages look for them there, and from nowhere else."""

from __future__ import annotations

import hashlib
import io
import os
import re
import stat
from collections.abc import Callable, Generator, Mapping
from datetime import datetime
from pathlib import Path, PosixPath
from typing import Any, NoReturn, TypeVar
from urllib.parse import unquote, urlsplit

from scaleup.errors import ScaleupError

T = TypeVar("T")
ADDRESS = re.compile(r"[a-z][a-z0-9+.-]*://", re.I)
BUFFER = 1 << 20
CREDENTIALS = {
    "s3": "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE",
    "gs": "set GOOGLE_APPLICATION_CREDENTIALS",
    "hf": "set HF_TOKEN",
}
"""Maps a kind of address -> the variables of the environment that its package reads."""
VERSIONS = ("ETag", "etag", "md5Hash", "blob_id", "LastModified", "last_modified", "mtime", "created")
"""Names what file systems tell of a file that is another once the file is."""


def remote_path(address: str) -> Path | None:
    """Returns what an address means, a `file://` one on this machine; None for what is no address."""
    if not ADDRESS.match(address):
        return None
    if address.lower().startswith("file://"):
        return Path(unquote(urlsplit(address).path))
    return RemotePath(address)


class RemotePath(PosixPath):
    """Is a path at which files of another machine are read, as one reads those of this one.

    Whatever looks there raises ScaleupError where a package, the right or the network is missing."""

    def __str__(self) -> str:
        return super().__str__().replace(":/", "://", 1)

    def __fspath__(self) -> str:
        return str(self)

    @property
    def version(self) -> str | None:
        """Is what the file system says of which file this is; None where it says nothing that would change with it."""
        info = self._info()
        known = [f"{name} {info[name]}" for name in VERSIONS if info.get(name)]
        return " ".join([*known, f"size {info.get('size')}"]) if known else None

    def open(
        self, mode: str = "r", buffering: int = -1, encoding: Any = None, errors: Any = None, newline: Any = None
    ) -> Any:
        opened = self._ask(lambda system, place: system.open(place, "rb"))
        raw = io.BufferedReader(opened, BUFFER)
        return raw if "b" in mode else io.TextIOWrapper(raw, encoding or "utf-8", errors, newline)

    def stat(self, *, follow_symlinks: bool = True) -> os.stat_result:
        info = self._info()
        which = int(hashlib.blake2b((self.version or "").encode(), digest_size=7).hexdigest(), 16)
        changed = next((_seconds(info[name]) for name in VERSIONS[4:] if info.get(name)), 0.0)
        kind = stat.S_IFDIR if info["type"] == "directory" else stat.S_IFREG
        nanoseconds = {"st_mtime_ns": int(changed * 1e9), "st_ctime_ns": int(changed * 1e9)}
        times = (changed, changed, changed)
        return os.stat_result((kind, which, 0, 1, 0, 0, info.get("size") or 0, *times), nanoseconds)

    def exists(self, **_: Any) -> bool:
        return bool(self._ask(lambda system, place: system.exists(place)))

    def is_file(self, **_: Any) -> bool:
        return bool(self._ask(lambda system, place: system.isfile(place)))

    def is_dir(self, **_: Any) -> bool:
        return bool(self._ask(lambda system, place: system.isdir(place)))

    def iterdir(self) -> Generator[RemotePath, None, None]:
        for place in self._ask(lambda system, place: system.ls(place, detail=False)):
            yield self / str(place).rstrip("/").rpartition("/")[2]

    def glob(self, pattern: str, **_: Any) -> Generator[RemotePath, None, None]:
        """Yields what lies in the folder, if it is one: whatever the pattern is."""
        if self.is_dir():
            yield from self.iterdir()

    def resolve(self, strict: bool = False) -> Any:
        return self

    def absolute(self) -> Any:
        return self

    def _info(self) -> Mapping[str, Any]:
        return dict(self._ask(lambda system, place: system.info(place)))

    def _ask(self, question: Callable[[Any, str], T]) -> T:
        """Returns what a file system answers. Raises ScaleupError and FileNotFoundError."""
        try:
            import fsspec

            return question(*fsspec.core.url_to_fs(str(self)))
        except (FileNotFoundError, ScaleupError):
            raise
        except ImportError as error:
            self._refuse_package(error)
        except Exception as error:  # each package has errors of its own
            kind = str(self).partition("://")[0]
            why = " ".join(str(getattr(error, "strerror", None) or error).split())[:300] or type(error).__name__
            remedy = CREDENTIALS.get(kind, "see to its credentials in the environment, and to the network")
            raise ScaleupError.of(str(self), f"cannot be reached: {why}", remedy) from error

    def _refuse_package(self, error: ImportError) -> NoReturn:
        known = re.search(r"[Ii]nstall (\w+)", str(error))
        name = error.name or (known[1] if known else "fsspec")
        extra = "remote" if name in ("s3fs", "gcsfs") else "train"
        remedy = f"pip install 'scaleup[{extra}]'" if name in ("s3fs", "gcsfs", "fsspec") else f"pip install {name}"
        raise ScaleupError.of(str(self), f"is read with {name}, not installed here", remedy) from error


def _seconds(when: Any) -> float:
    if isinstance(when, datetime):
        return when.timestamp()
    try:
        return float(when)
    except (TypeError, ValueError):
        return 0.0
