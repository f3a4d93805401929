"""Driver, CUDA_VISIBLE_DEVICES and torch: what follows from what each of them says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from scaleup.doctor.devices import Driver, device_findings
from scaleup.doctor.finding import Finding
from scaleup.plan.machine import Machine
from scaleup.plan.torch_facts import DeviceFacts, TorchFacts

A100 = DeviceFacts(name="NVIDIA A100", memory=80 * 2**30, capability="8.0", bf16=True)
T4 = DeviceFacts(name="Tesla T4", memory=15 * 2**30, capability="7.5", bf16=False)


def facts(*devices: DeviceFacts, **changes: Any) -> TorchFacts:
    known: dict[str, Any] = {
        "version": "2.13.0",
        "cuda": "12.8",
        "nccl": "2.27.3",
        "backends": ("gloo", "nccl"),
        "devices": devices,
        "cuda_error": None,
        "cpu_bf16": 0.5,
        "ops_folder": None,
        "ops_built": (),
    }
    return TorchFacts(**(known | changes))


def rows(asked: TorchFacts, num_gpus: int, visible: str | None = None) -> dict[str, Finding]:
    machine = Machine(num_cores=8, num_gpus=num_gpus, memory=32 * 2**30)
    found = device_findings(asked, Driver(num_gpus, "550.54"), visible, machine)
    return {finding.name: finding for finding in found}


def test_a_machine_of_cpus() -> None:
    found = rows(facts(cuda=None, nccl=None, backends=("gloo",)), 0)
    assert {finding.level for finding in found.values()} == {"ok"}
    assert found["CPU"].what == "8 cores, 32.0 GiB of memory"
    assert "built for CPUs; backends gloo" in found["torch"].what
    assert "0.5 x float32's time" in found["precision"].what


def test_gpus_that_all_see() -> None:
    found = rows(facts(A100, A100), 2)
    assert found["GPUs"].level == "ok" and "2 x NVIDIA A100, 80.0 GiB, capability 8.0" in found["GPUs"].what
    assert found["precision"].what == "bf16 and fp16"


@pytest.mark.parametrize(
    ("asked", "visible", "level", "said"),
    [
        (facts(cuda=None, nccl=None), None, "warn", "this torch is built for CPUs"),
        (facts(), "", "warn", "CUDA_VISIBLE_DEVICES='' hides all"),
        (facts(), "-1", "warn", "hides all"),
        (facts(cuda_error="driver too old (found version 11040)"), None, "fail", "finds none: driver too old"),
        (facts(A100), "0,7", "warn", "names 2, and torch finds 1"),
        (facts(A100), "1", "ok", "1 x NVIDIA A100"),
        (facts(A100, T4), None, "warn", "not all alike"),
    ],
)
def test_gpus_that_not_all_see(asked: TorchFacts, visible: str | None, level: str, said: str) -> None:
    found = rows(asked, 2, visible)["GPUs"]
    assert found.level == level and said in found.what
    assert bool(found.remedy) == (level != "ok")


def test_precision_that_a_device_lacks() -> None:
    found = rows(facts(T4), 1)["precision"]
    assert (found.level, found.what, found.remedy) == (
        "warn",
        "Tesla T4: fp16, but no bf16",
        "use mixed_precision: fp16",
    )
    assert rows(facts(cpu_bf16=None), 0)["precision"].level == "warn"


def test_the_driver_is_read_from_the_kernel_module(tmp_path: Path) -> None:
    assert Driver.here(tmp_path / "none") == Driver(0, None)
    (tmp_path / "gpus" / "0000:01:00.0").mkdir(parents=True)
    (tmp_path / "version").write_text("NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  Tue Mar  5\nGCC\n")
    assert Driver.here(tmp_path) == Driver(1, "550.54.15")
    (tmp_path / "version").write_text(
        "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  570.86.15  Release Build\nGCC version:\n"
    )
    assert Driver.here(tmp_path).version == "570.86.15"
