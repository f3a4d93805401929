"""This module examines limits of the system that end runs in odd ways: shared memory, open files, locked memory; and
locks left behind."""

from __future__ import annotations

import os
import resource
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import psutil

from scaleup.artifacts.files import cache_folder
from scaleup.children import odd_counts
from scaleup.doctor.finding import Finding, ok, size_text, warn

SHARED_MEMORY, LEAST_SHARED = Path("/dev/shm"), 2**30
LEAST_FILES = 4096
INFINIBAND = Path("/sys/class/infiniband")
STALE_SECONDS = 3600.0
"""Is the age in seconds from which a lock counts as left behind. Compiling takes minutes; another host that shares the
folder may be at it, and is not seen from here."""


def limit_findings(shared: Path = SHARED_MEMORY, infiniband: Path = INFINIBAND) -> Iterator[Finding]:
    yield shared_memory(shared)
    yield from thread_findings(os.environ)
    yield open_files(resource.getrlimit(resource.RLIMIT_NOFILE)[0])
    if infiniband.is_dir() and any(infiniband.iterdir()):
        yield locked_memory(resource.getrlimit(resource.RLIMIT_MEMLOCK)[0])


def shared_memory(folder: Path) -> Finding:
    """Check shared memory: NCCL, gloo and DeepSpeed's CPU collectives use it; containers have 64 MiB by default."""
    try:
        usage = shutil.disk_usage(folder)
    except OSError as error:
        return warn(str(folder), f"cannot be asked: {error.strerror}", "mount a tmpfs there")
    has = f"{size_text(usage.free)} free of {size_text(usage.total)}"
    if usage.free >= LEAST_SHARED:
        return ok(str(folder), has)
    remedy = (
        "delete what runs left there, or give more (docker: --shm-size 8g; Kubernetes: an emptyDir of medium Memory)"
    )
    return warn(str(folder), f"{has}: processes on a node talk through it", remedy)


def thread_findings(environment: Mapping[str, str]) -> Iterator[Finding]:
    """Checks variables that say how many threads a process has. A run has its plan's number, whatever they are."""
    for name, value in odd_counts(environment).items():
        what = f"{value!r} is no number above 0; a run does without it, and takes its plan's number of threads"
        yield warn(name, what, f"other programs may not: export {name}=4, or unset it")


def open_files(limit: int) -> Finding:
    if limit == resource.RLIM_INFINITY or limit >= LEAST_FILES:
        return ok("open files", "no limit" if limit == resource.RLIM_INFINITY else f"up to {limit:,}")
    return warn(
        "open files", f"at most {limit:,}, and each connection and memory-mapped file is one", "ulimit -n 65536"
    )


def locked_memory(limit: int) -> Finding:
    """Check locked memory: RDMA pins its buffers."""
    if limit == resource.RLIM_INFINITY:
        return ok("locked memory", "no limit")
    return warn(
        "locked memory",
        f"at most {size_text(limit)}, and there is InfiniBand here, which pins its buffers",
        "ulimit -l unlimited (systemd: LimitMEMLOCK=infinity)",
    )


def compile_folders(ops_folder: Path | None) -> list[Path]:
    """Return where torch and DeepSpeed (also in our own folder) and Triton compile."""
    home = Path.home()
    torch = Path(os.environ.get("TORCH_EXTENSIONS_DIR") or cache_folder().parent / "torch_extensions")
    triton = Path(os.environ.get("TRITON_CACHE_DIR") or home / ".triton" / "cache")
    return list(dict.fromkeys([torch, triton, *([ops_folder] if ops_folder else [])]))


def lock_findings(folders: Sequence[Path]) -> Iterator[Finding]:
    """Find locks of builds that were killed: torch waits for them for ever, without a word."""
    locks = [lock for folder in folders for lock in sorted(folder.glob("**/lock")) if lock.is_file()]
    stale = 0
    for lock in locks:
        with suppress(FileNotFoundError):  # released just now
            age = time.time() - lock.stat().st_mtime
            if age < STALE_SECONDS or holders(lock.resolve()):
                continue
            stale += 1
            what = f"{age / 3600:,.0f} h old, and no process here has it open: a build waits for it for ever"
            yield warn(f"lock {lock}", what, f"rm {lock}, once no other host builds there")
    if not stale:
        yield ok("compile locks", f"none left behind in {', '.join(map(str, folders))}")


def holders(file: Path) -> list[int]:
    """Return the ids of processes on this host that have a file open, as far as this user may look."""
    everybody = psutil.process_iter(["open_files"])
    return [each.pid for each in everybody if any(Path(open_.path) == file for open_ in each.info["open_files"] or ())]
