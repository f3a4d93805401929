"""This module examines the machine at hand, without torch, or takes one that is described instead: `scaleup plan CONFIG
--gpus 64 --gpu-memory 80`."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from scaleup.errors import Problem, ScaleupError

PROC, CGROUPS = Path("/proc"), Path("/sys/fs/cgroup")
GPU_MEMORY = ("nvidia-smi", "--query-gpu=memory.total --format=csv,noheader,nounits")

CORES_A_GPU = 8
"""Counts the cores a GPU of a described machine: only the number of threads depends on it."""


@dataclass(frozen=True)
class Machine:
    num_cores: int
    num_gpus: int
    memory: int | None = None
    """Counts the bytes of main memory that this process and its children may use together; None where it cannot be
    read."""
    gpu_memory: int | None = None
    """Counts the bytes of the smallest GPU; None where there is none, or no driver to ask."""
    is_described: bool = False
    """Tells that the machine is described and not this one: nothing can be started, so a model may lack its weights."""


def this_machine() -> Machine:
    num_gpus = _count_gpus()
    return Machine(
        num_cores=len(os.sched_getaffinity(0)),
        num_gpus=num_gpus,
        memory=_memory(),
        gpu_memory=_gpu_memory() if num_gpus else None,
    )


def _count_gpus() -> int:
    """Returns the number of NVIDIA GPUs that the driver lists, less those hidden by CUDA_VISIBLE_DEVICES."""
    present = len(list(Path("/proc/driver/nvidia/gpus").glob("*")))
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return present
    return min(present, len([device for device in visible.split(",") if device.strip() not in ("", "-1")]))


def _memory() -> int | None:
    """Returns the bytes that the machine has, or that its container or job may use if that is less."""
    try:
        total = psutil.virtual_memory().total
    except (OSError, KeyError):  # KeyError: a /proc/meminfo without that line
        return None
    return min([total, *_limits()])


def _limits() -> Iterator[int]:
    """Yields the limits of the control groups that this process is in, of either version, and of those around them."""
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
    """Returns the memory of the smallest GPU of the machine, whichever of them the run will get."""
    program, options = GPU_MEMORY
    try:
        done = subprocess.run([program, *options.split()], capture_output=True, text=True, check=True, timeout=20)
        return min(int(line) for line in done.stdout.split()) * 2**20
    except (OSError, ValueError, subprocess.SubprocessError):
        return None


def described_machine(
    gpus: int | None, gpu_memory: float | None, nodes: int | None, overrides: Sequence[str]
) -> tuple[Machine, list[str]]:
    """Returns one of `nodes` equal machines, with `gpus` in all and so many GiB each, and the changes to a config that
    make it use them all; this machine if nothing is described.

    Raises ScaleupError if the description is invalid."""
    if gpus is None and gpu_memory is None and nodes is None:
        return this_machine(), list(overrides)
    problems = []
    if gpus is None:
        problems.append(Problem("--gpus", "is needed to describe a machine", "say how many GPUs there are in all"))
    if gpu_memory is None:
        problems.append(Problem("--gpu-memory", "is needed to describe a machine", "give the GiB of one GPU, e.g. 80"))
    if gpus is not None and gpus % (nodes or 1):
        problems.append(Problem("--gpus", f"{gpus} do not divide over {nodes} nodes", f"use a multiple of {nodes}"))
    if problems:
        raise ScaleupError(problems)
    assert gpus is not None and gpu_memory is not None
    nodes = nodes or 1
    a_node = gpus // nodes
    machine = Machine(
        num_cores=CORES_A_GPU * a_node, num_gpus=a_node, gpu_memory=int(gpu_memory * 2**30), is_described=True
    )
    used = ["parallel.device=cuda", f"parallel.num_processes={gpus}", f"parallel.num_nodes={nodes}"]
    return machine, [*overrides, *used]
