"""This module keeps stdout and stderr from ending a process: a pipe whose reader is gone, a terminal that was closed, a
full disk and a letter that the encoding does not have cost what would have been read there, and nothing else. That a
disk took nothing can be asked for afterwards."""

from __future__ import annotations

import errno
import io
import os
import select
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO

OF_A_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
"""Are the failures that cost somebody what he asked for. A reader that is gone wants nothing more."""


@contextmanager
def steady_streams() -> Iterator[None]:
    """Makes the three standard streams such ones within the block: open where they were closed, never failing where
    they are written. Streams that somebody has put in their place, as tests do, are left alone."""
    _fill_descriptors()
    before = sys.stdin, sys.stdout, sys.stderr
    if sys.stdin is None:
        sys.stdin = os.fdopen(0, encoding="utf-8", closefd=False)
    if sys.stdout is None or sys.stdout is sys.__stdout__:
        sys.stdout = _steady(1, "<stdout>", sys.stdout)
    if sys.stderr is None or sys.stderr is sys.__stderr__:
        sys.stderr = _steady(2, "<stderr>", sys.stderr)
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        sys.stdin, sys.stdout, sys.stderr = before


def unwritten() -> str:
    """Returns why the disk did not take all that was printed so far; empty where it did, or where the reader is gone.
    Of the block of `steady_streams` alone."""
    sys.stdout.flush()
    written_to: Any = getattr(sys.stdout, "buffer", None)
    raw = getattr(written_to, "raw", written_to)
    return raw.failure if isinstance(raw, _Descriptor) else ""


def reader_is_gone() -> bool:
    """Returns whether stdout is a pipe or a terminal that nobody reads any more."""
    try:
        poll = select.poll()
        poll.register(sys.stdout.fileno(), 0)
        return bool(poll.poll(0))
    except (OSError, ValueError):  # a stream that somebody has put in its place
        return False


def _fill_descriptors() -> None:
    """Opens descriptors 0 to 2 where they are closed (`2>&-`): the next file that is opened would take their place, and
    whatever a child prints would go into it."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)


def _steady(descriptor: int, name: str, like: TextIO | None) -> TextIO:
    raw: Any = _Descriptor(descriptor, name)
    is_unbuffered = isinstance(like, io.TextIOWrapper) and like.write_through  # python -u
    return io.TextIOWrapper(
        raw if is_unbuffered else io.BufferedWriter(raw),
        encoding=like.encoding if like else "utf-8",
        errors="backslashreplace",
        line_buffering=descriptor == 2 or raw.isatty(),
        write_through=is_unbuffered,
    )


class _Descriptor(io.RawIOBase):
    """Writes to a descriptor, and drops what that does not take; `failure` is why, if a disk is to blame."""

    def __init__(self, descriptor: int, name: str) -> None:
        super().__init__()
        self._descriptor = descriptor
        self.name = name
        self.failure = ""
        self._is_terminal = os.isatty(descriptor)  # which says EIO once it is closed

    def fileno(self) -> int:
        return self._descriptor

    def isatty(self) -> bool:
        return os.isatty(self._descriptor)

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        left = memoryview(data).cast("B")
        size = len(left)
        try:
            while left:
                try:
                    left = left[os.write(self._descriptor, left) :]
                except BlockingIOError:  # a pipe that somebody has made non-blocking, and that is full
                    select.select([], [self._descriptor], [])
        except OSError as error:
            if error.errno in OF_A_DISK and not self._is_terminal:
                self.failure = os.strerror(error.errno)
        return size
