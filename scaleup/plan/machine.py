"""What the machine at hand offers, read without torch."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Machine:
    num_cores: int
    num_gpus: int


def this_machine() -> Machine:
    return Machine(num_cores=len(os.sched_getaffinity(0)), num_gpus=_count_gpus())


def _count_gpus() -> int:
    """NVIDIA GPUs that the driver lists, less those hidden by CUDA_VISIBLE_DEVICES."""
    present = len(list(Path("/proc/driver/nvidia/gpus").glob("*")))
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return present
    return min(present, len([device for device in visible.split(",") if device.strip() not in ("", "-1")]))
