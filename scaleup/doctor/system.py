"""Limits of the system that end runs in odd ways: shared memory, open files, locked memory; and locks left behind."""

from __future__ import annotations

import os
import resource
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from scaleup.doctor.finding import Finding, ok, size_text, warn

SHARED_MEMORY, LEAST_SHARED = Path("/dev/shm"), 2**30
LEAST_FILES = 4096
INFINIBAND = Path("/sys/class/infiniband")
STALE_SECONDS = 3600.0
"""Compiling takes minutes; another host that shares the folder may be at it, and is not seen from here."""


def limit_findings(shared: Path = SHARED_MEMORY, infiniband: Path = INFINIBAND) -> Iterator[Finding]:
    yield shared_memory(shared)
    yield open_files(resource.getrlimit(resource.RLIMIT_NOFILE)[0])
    if infiniband.is_dir() and any(infiniband.iterdir()):
        yield locked_memory(resource.getrlimit(resource.RLIMIT_MEMLOCK)[0])


def shared_memory(folder: Path) -> Finding:
    """NCCL, gloo and DeepSpeed's CPU collectives lie there; containers get 64 MiB unless told otherwise."""
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


def open_files(limit: int) -> Finding:
    if limit == resource.RLIM_INFINITY or limit >= LEAST_FILES:
        return ok("open files", "no limit" if limit == resource.RLIM_INFINITY else f"up to {limit:,}")
    return warn(
        "open files", f"at most {limit:,}, and each connection and memory-mapped file is one", "ulimit -n 65536"
    )


def locked_memory(limit: int) -> Finding:
    """RDMA pins its buffers."""
    if limit == resource.RLIM_INFINITY:
        return ok("locked memory", "no limit")
    return warn(
        "locked memory",
        f"at most {size_text(limit)}, and there is InfiniBand here, which pins its buffers",
        "ulimit -l unlimited (systemd: LimitMEMLOCK=infinity)",
    )


def compile_folders(ops_folder: Path | None) -> list[Path]:
    """Where torch and DeepSpeed (also in our own folder) and Triton compile."""
    home = Path.home()
    cache = os.environ.get("XDG_CACHE_HOME") or home / ".cache"
    torch = Path(os.environ.get("TORCH_EXTENSIONS_DIR") or Path(cache) / "torch_extensions")
    triton = Path(os.environ.get("TRITON_CACHE_DIR") or home / ".triton" / "cache")
    return list(dict.fromkeys([torch, triton, *([ops_folder] if ops_folder else [])]))


def lock_findings(folders: Sequence[Path]) -> Iterator[Finding]:
    """Locks of builds that were killed. torch waits for them for ever, without a word."""
    locks = [lock for folder in folders for lock in sorted(folder.glob("**/lock")) if lock.is_file()]
    stale = 0
    for lock in locks:
        with suppress(FileNotFoundError):  # released just now
            age = time.time() - lock.stat().st_mtime
            if age < STALE_SECONDS or holders(str(lock.resolve())):
                continue
            stale += 1
            what = f"{age / 3600:,.0f} h old, and no process here has it open: a build waits for it for ever"
            yield warn(f"lock {lock}", what, f"rm {lock}, once no other host builds there")
    if not stale:
        yield ok("compile locks", f"none left behind in {', '.join(map(str, folders))}")


def holders(target: str) -> list[int]:
    """Ids of processes on this host that have a file (or `socket:[INODE]`) open, as far as this user may look."""
    found = []
    for folder in Path("/proc").glob("[0-9]*/fd"):
        with suppress(OSError):  # gone, or another user's
            if any(_points_at(entry, target) for entry in folder.iterdir()):
                found.append(int(folder.parent.name))
    return found


def _points_at(entry: Path, target: str) -> bool:
    with suppress(OSError):
        return str(entry.readlink()) == target
    return False
