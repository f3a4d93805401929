"""This module examines whether the driver, CUDA_VISIBLE_DEVICES and torch agree on the devices, and what these can
compute."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from scaleup.doctor.finding import Finding, fail, ok, size_text, warn
from scaleup.plan.machine import Machine
from scaleup.plan.torch_facts import TorchFacts

DRIVER = Path("/proc/driver/nvidia")


@dataclass(frozen=True)
class Driver:
    """Holds what NVIDIA's kernel module tells, without any library."""

    num_gpus: int
    version: str | None

    @classmethod
    def here(cls, folder: Path = DRIVER) -> Driver:
        try:
            version = re.search(r"Kernel Module.*?\s(\d+\.[\d.]+)", (folder / "version").read_text())
        except OSError:
            version = None
        return cls(len(list((folder / "gpus").glob("*"))), version[1] if version else None)


def device_findings(facts: TorchFacts, driver: Driver, visible: str | None, machine: Machine) -> Iterator[Finding]:
    """Compare the driver with torch. `visible` is CUDA_VISIBLE_DEVICES, None if it is not set."""
    memory = "" if machine.memory is None else f", {size_text(machine.memory)} of memory"
    yield ok("CPU", f"{machine.num_cores} cores{memory}")
    yield _gpus(facts, driver, visible)
    built = f"CUDA {facts.cuda}, NCCL {facts.nccl or 'none'}" if facts.cuda else "CPUs"
    yield ok("torch", f"{facts.version}, built for {built}; backends {', '.join(facts.backends) or 'none'}")
    yield from _precision(facts)


def _gpus(facts: TorchFacts, driver: Driver, visible: str | None) -> Finding:
    present, seen = driver.num_gpus, len(facts.devices)
    if not present and not seen:
        return ok("GPUs", "none, so runs are on the CPU")
    lists = f"the driver{f' {driver.version}' if driver.version else ''} lists {present} GPU(s)"
    if facts.cuda is None:
        return warn("GPUs", f"{lists}, and this torch is built for CPUs", "install torch's CUDA build")
    named = None if visible is None else [device for device in visible.split(",") if device.strip() not in ("", "-1")]
    if named == []:
        return warn("GPUs", f"{lists}, and CUDA_VISIBLE_DEVICES={visible!r} hides all", "unset it to use them")
    expected = present if named is None else min(present, len(named))
    if not seen:
        what = f"{lists}, and torch (CUDA {facts.cuda}) finds none: {facts.cuda_error or 'it does not say why'}"
        return fail("GPUs", what, f"use a driver for CUDA {facts.cuda} or newer, or a torch built for an older CUDA")
    if seen < expected:
        what = f"{lists}, CUDA_VISIBLE_DEVICES={visible!r} names {expected}, and torch finds {seen}"
        return warn("GPUs", what, "mend CUDA_VISIBLE_DEVICES: CUDA stops at the first name that it does not know")
    kinds = Counter((d.name, size_text(d.memory), d.capability) for d in facts.devices)
    shown = "; ".join(f"{n} x {name}, {size}, capability {level}" for (name, size, level), n in kinds.items())
    if len(kinds) > 1:
        return warn(
            "GPUs", f"not all alike: {shown}", "the slowest and smallest one decides: choose with CUDA_VISIBLE_DEVICES"
        )
    return ok("GPUs", f"{shown}, driver {driver.version or 'unknown'}")


def _precision(facts: TorchFacts) -> Iterator[Finding]:
    if facts.devices:
        lacking = sorted({device.name for device in facts.devices if not device.bf16})
        what = f"{', '.join(lacking)}: fp16, but no bf16" if lacking else "bf16 and fp16"
        yield (warn if lacking else ok)("precision", what, *(["use mixed_precision: fp16"] if lacking else []))
    elif facts.cpu_bf16 is None:
        yield warn("precision", "torch cannot compute in bf16 on this CPU", 'use mixed_precision: "no"')
    else:
        yield ok("precision", f"bf16 on the CPU: a matrix product takes {facts.cpu_bf16:.1f} x float32's time")
