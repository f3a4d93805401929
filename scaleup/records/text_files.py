"""Text files, compressed or not, opened for reading; and what tells that a file holds something else than its name
says."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, TextIO


class OtherContentError(Exception):
    """Tells that a file holds something else than UTF-8 text, and what to do."""

    def __init__(self, what: str, remedy: str) -> None:
        super().__init__(what)
        self.what, self.remedy = what, remedy


def _open_zst(file: Path) -> IO[bytes]:
    import pyarrow  # heavy, and of the extra `train`

    return io.BufferedReader(pyarrow.CompressedInputStream(pyarrow.PythonFile(file.open("rb")), "zstd"))


COMPRESSIONS: dict[str, Callable[[Path], IO[bytes]]] = {
    ".gz": lambda file: io.BufferedReader(gzip.GzipFile(fileobj=file.open("rb"))),
    ".bz2": lambda file: io.BufferedReader(bz2.BZ2File(file.open("rb"))),
    ".xz": lambda file: io.BufferedReader(lzma.LZMAFile(file.open("rb"))),  # noqa: SIM115 (whoever reads closes it)
    ".zst": _open_zst,
}
"""Maps the last suffix of a compressed file -> what opens it."""
UNREADABLE = (OSError, EOFError, zlib.error, lzma.LZMAError)
"""Holds what reading may raise: of a file that is not there, is cut off or is damaged."""

CONTENTS = {
    b"\xff\xfe": ("UTF-16", "save it as UTF-8"),
    b"\xfe\xff": ("UTF-16", "save it as UTF-8"),
    b"\x1f\x8b": ("gzip's compressed bytes", "let its name end in .gz"),
    b"BZh": ("bzip2's compressed bytes", "let its name end in .bz2"),
    b"\xfd7zXZ\0": ("xz's compressed bytes", "let its name end in .xz"),
    b"\x28\xb5\x2f\xfd": ("zstd's compressed bytes", "let its name end in .zst"),
    b"PK\x03\x04": ("a zip archive", "unpack it"),
    b"PAR1": ("Parquet", "let its name end in .parquet"),
}
"""Maps how files that are not UTF-8 text begin -> what they hold and what to do."""
LONGEST_START = max(map(len, CONTENTS))


def open_text(file: Path, newline: str | None = None) -> TextIO:
    """Opens a file of UTF-8 text, whose lines end in any way. Raises one of UNREADABLE, and OtherContentError.

    Bytes that are not UTF-8 become lone surrogates, so that one bad line does not end the reading of the rest."""
    opener: Any = COMPRESSIONS.get(file.suffix.lower(), lambda plain: plain.open("rb"))
    opened = opener(file)
    try:
        _check_start(opened.peek(LONGEST_START)[:LONGEST_START])
    except BaseException:
        opened.close()
        raise
    return io.TextIOWrapper(opened, encoding="utf-8-sig", errors="surrogateescape", newline=newline)


def is_utf8(text: str) -> bool:
    try:
        return text.isascii() or bool(text.encode())
    except UnicodeEncodeError:
        return False


def _check_start(start: bytes) -> None:
    for mark, (content, remedy) in CONTENTS.items():
        if start.startswith(mark):
            raise OtherContentError(f"holds {content}, not UTF-8 text", remedy)
    if b"\0" in start:
        raise OtherContentError("holds null bytes: it is UTF-16 or no text at all", "save it as UTF-8 text")
