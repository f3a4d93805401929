"""This module holds the facts of this machine that torch tells. The data plane gathers them in a process of its own
(`python -m scaleup.describe.devices`), and hands them back as JSON."""

from __future__ import annotations

import subprocess
import sys

from pydantic import BaseModel, ConfigDict

from scaleup.children import python_environment


class DeviceFacts(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    memory: int
    """Counts the bytes of the device's memory, in all."""
    capability: str
    """Is CUDA's compute capability, e.g. 9.0."""
    bf16: bool
    """Tells whether the device has arithmetic for bfloat16, and does not only imitate it."""


class TorchFacts(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    version: str
    cuda: str | None
    """Is the version of CUDA that torch was built for; None: for CPUs."""
    nccl: str | None
    backends: tuple[str, ...]
    """Names the backends of torch.distributed."""
    devices: tuple[DeviceFacts, ...]
    cuda_error: str | None
    """Says why a torch that was built for CUDA finds no GPU."""
    cpu_bf16: float | None
    """Tells how many times as long as in float32 a product of matrices in bfloat16 takes on this CPU; None where it
    fails."""
    ops_folder: str | None
    """Tells where DeepSpeed's operations for CPUs are compiled; None where a package is missing."""
    ops_built: tuple[str, ...]
    """Names the operations that are compiled there already."""


def ask_torch() -> TorchFacts:
    """Returns torch's facts of this machine; takes as long as importing torch. Raises RuntimeError if torch cannot be
    imported."""
    command = [sys.executable, "-m", "scaleup.describe.devices"]
    answer = subprocess.run(
        command, capture_output=True, text=True, errors="replace", check=False, timeout=300, env=python_environment()
    )
    if answer.returncode != 0 or not answer.stdout.strip():
        errors = answer.stderr.strip().splitlines()[-1:] or ["no word"]
        raise RuntimeError(f"{' '.join(command[1:])} ended with exit code {answer.returncode}: {errors[0]}")
    return TorchFacts.model_validate_json(answer.stdout.strip().splitlines()[-1])
