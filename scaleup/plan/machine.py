"""What the machine at hand offers, read without torch."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PROC, CGROUPS = Path("/proc"), Path("/sys/fs/cgroup")
GPU_MEMORY = ("nvidia-smi", "--query-gpu=memory.total --format=csv,noheader,nounits")


@dataclass(frozen=True)
class Machine:
    num_cores: int
    num_gpus: int
    memory: int | None = None
    """Bytes of main memory that this process and its children may use together; None where it cannot be read."""
    gpu_memory: int | None = None
    """Bytes of the smallest GPU; None where there is none, or no driver to ask."""
    is_described: bool = False
    """It is told of and not at hand: nothing can be started, so a model may lack its weights."""


def this_machine() -> Machine:
    num_gpus = _count_gpus()
    return Machine(
        num_cores=len(os.sched_getaffinity(0)),
        num_gpus=num_gpus,
        memory=_memory(),
        gpu_memory=_gpu_memory() if num_gpus else None,
    )


def _count_gpus() -> int:
    """NVIDIA GPUs that the driver lists, less those hidden by CUDA_VISIBLE_DEVICES."""
    present = len(list(Path("/proc/driver/nvidia/gpus").glob("*")))
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return present
    return min(present, len([device for device in visible.split(",") if device.strip() not in ("", "-1")]))


def _memory() -> int | None:
    """What the machine has, or its container or job may use if that is less."""
    try:
        lines = (PROC / "meminfo").read_text().splitlines()
        total = 1024 * next(int(line.split()[1]) for line in lines if line.startswith("MemTotal:"))
    except (OSError, ValueError, StopIteration):
        return None
    return min([total, *_limits()])


def _limits() -> Iterator[int]:
    """Of the control groups that this process is in, of either version, and of those around them."""
    for line in _text(PROC / "self" / "cgroup").splitlines():
        _, controllers, place = line.split(":", 2)
        if controllers not in ("", "memory"):
            continue
        root, name = (CGROUPS / controllers, "memory.limit_in_bytes") if controllers else (CGROUPS, "memory.max")
        inner = root / place.lstrip("/")
        for folder in (inner, *inner.parents):
            if folder.is_relative_to(root) and (text := _text(folder / name)).isdigit():
                yield int(text)


def _text(file: Path) -> str:
    try:
        return file.read_text().strip()
    except OSError:
        return ""


def _gpu_memory() -> int | None:
    """Of the smallest GPU of the machine, whichever of them the run will get."""
    program, options = GPU_MEMORY
    try:
        done = subprocess.run([program, *options.split()], capture_output=True, text=True, check=True, timeout=20)
        return min(int(line) for line in done.stdout.split()) * 2**20
    except (OSError, ValueError, subprocess.SubprocessError):
        return None
