"""This module tells the C library how to allocate while a model is sharded: much is taken then and given back, and what
lies between kept blocks would stay resident."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
LARGE, USUAL = 128 * 1024, 32 * 1024 * 1024
"""Are glibc's own thresholds in bytes: at the start of a process, and the highest it gets to as large blocks are freed,
where a training ends up within its first step."""


@contextmanager
def large_blocks_given_back() -> Iterator[None]:
    """Makes glibc map every large block by itself inside, so that freeing it gives it back to the system. Other C
    libraries stay as they are."""
    _set_thresholds(LARGE)
    try:
        yield
    finally:
        _set_thresholds(USUAL)


def _set_thresholds(size: int) -> None:
    try:
        library = ctypes.CDLL(None)
        library.gnu_get_libc_version  # noqa: B018 -- raises where it is another one
    except (OSError, AttributeError):
        return
    library.mallopt(M_MMAP_THRESHOLD, size)
    library.mallopt(M_TRIM_THRESHOLD, 2 * size)
    library.malloc_trim(0)
