"""This machine goes in; what torch knows of it comes out: versions, backends, GPUs, the speed of bfloat16 on the CPU.

`python -m scaleup.describe.devices` prints it as JSON, in the last line of stdout. Nothing is compiled and no process
group is joined."""

from __future__ import annotations

import contextlib
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist

from scaleup.distributed.deepspeed_ops import ops_folder
from scaleup.errors import ScaleupError
from scaleup.plan.torch_facts import DeviceFacts, TorchFacts

SIZE, REPEATS = 512, 20


def torch_facts() -> TorchFacts:
    """Return what torch knows of this machine. CUDA errors are part of it."""
    devices, error = _devices()
    folder = _ops_folder()
    return TorchFacts(
        version=torch.__version__,
        cuda=torch.version.cuda,
        nccl=_nccl(),
        backends=_backends(),
        devices=devices,
        cuda_error=error,
        cpu_bf16=_cpu_bf16(),
        ops_folder=str(folder) if folder else None,
        ops_built=tuple(sorted(marker.parent.name for marker in folder.glob("*/built"))) if folder else (),
    )


def _devices() -> tuple[tuple[DeviceFacts, ...], str | None]:
    """Return the GPUs, and CUDA's error if it was built in and does not start."""
    if torch.version.cuda is None:
        return (), None
    try:
        torch.cuda.init()  # is_available() would only say no
    except (RuntimeError, AssertionError) as error:
        return (), str(error).splitlines()[0][:300]
    return tuple(_device(index) for index in range(torch.cuda.device_count())), None


def _device(index: int) -> DeviceFacts:
    properties = torch.cuda.get_device_properties(index)
    has_bf16 = properties.major >= 8  # Ampere is the first with it; torch imitates it on older ones
    return DeviceFacts(
        name=properties.name,
        memory=properties.total_memory,
        capability=f"{properties.major}.{properties.minor}",
        bf16=has_bf16,
    )


def _nccl() -> str | None:
    if torch.version.cuda is None or not dist.is_nccl_available():
        return None
    return ".".join(map(str, torch.cuda.nccl.version()))


def _backends() -> tuple[str, ...]:
    if not dist.is_available():
        return ()
    available = {"gloo": dist.is_gloo_available(), "nccl": dist.is_nccl_available(), "mpi": dist.is_mpi_available()}
    return tuple(name for name, is_available in available.items() if is_available)


def _cpu_bf16() -> float | None:
    """Return the time of a matrix product in bfloat16 relative to float32; None if its result is wrong."""
    torch.set_num_threads(1)  # else it is told how busy the other cores are
    try:
        return _seconds(torch.bfloat16) / _seconds(torch.float32)
    except RuntimeError:
        return None


def _seconds(dtype: torch.dtype) -> float:
    """Return the best time of a few products: the machine may be busy. Raises RuntimeError for a wrong product."""
    ones, taken = torch.ones(SIZE, SIZE, dtype=dtype), []
    for _ in range(REPEATS):
        begun = time.perf_counter()
        product = ones @ ones
        taken.append(time.perf_counter() - begun)
        if product[0, 0].item() != SIZE:
            raise RuntimeError(f"a product in {dtype} is wrong")
    return min(taken)


def _ops_folder() -> Path | None:
    try:
        return ops_folder()
    except ScaleupError:
        return None


def main() -> None:
    with contextlib.redirect_stdout(sys.stderr):  # whatever libraries print
        facts = torch_facts()
    print(facts.model_dump_json())


if __name__ == "__main__":
    main()
