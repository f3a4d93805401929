"""What the planner reads of the machine, from files and a program that a test can write."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from scaleup.plan import machine
from scaleup.plan.machine import this_machine

VIRTUAL_MEMORY = psutil.virtual_memory


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(machine, "PROC", tmp_path / "proc")
    monkeypatch.setattr(machine, "CGROUPS", tmp_path / "cgroup")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(total=1000 * 1024))
    return tmp_path


def write(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


def test_the_machines_memory(place: Path) -> None:
    assert this_machine().memory == 1000 * 1024


@pytest.mark.parametrize(
    ("groups", "limits", "expected"),
    [
        ("0::/job/step\n", {"job/memory.max": "5000", "job/step/memory.max": "max"}, 5000),
        ("0::/job/step\n", {"job/memory.max": "5000", "job/step/memory.max": "4000"}, 4000),
        ("0::/\n", {"memory.max": "3000"}, 3000),
        ("4:memory:/job\n1:cpu:/job\n0::/\n", {"memory/job/memory.limit_in_bytes": "2000"}, 2000),
        ("4:memory:/elsewhere\n", {"memory/memory.limit_in_bytes": "9223372036854771712"}, 1000 * 1024),
    ],
)
def test_the_jobs_limit_if_that_is_less(place: Path, groups: str, limits: dict[str, str], expected: int) -> None:
    write(place / "proc/self/cgroup", groups)
    for file, text in limits.items():
        write(place / "cgroup" / file, f"{text}\n")
    assert this_machine().memory == expected


@pytest.mark.parametrize("meminfo", [None, "MemFree: 5 kB\n"])
def test_a_machine_that_does_not_tell(place: Path, monkeypatch: pytest.MonkeyPatch, meminfo: str | None) -> None:
    if meminfo is not None:
        write(place / "proc/meminfo", meminfo)
    monkeypatch.setattr(psutil, "virtual_memory", VIRTUAL_MEMORY)
    monkeypatch.setattr(psutil, "PROCFS_PATH", str(place / "proc"))
    assert this_machine().memory is None


@pytest.mark.parametrize(
    ("program", "expected"),
    [("echo 81559; echo 40960", 40960 * 2**20), ("echo '[N/A]'", None), ("exit 9", None), (None, None)],
)
def test_the_smallest_gpu(
    place: Path, monkeypatch: pytest.MonkeyPatch, program: str | None, expected: int | None
) -> None:
    monkeypatch.setattr(machine, "_count_gpus", lambda: 2)
    script = place / "nvidia-smi"
    if program is not None:
        script.write_text(f"#!/bin/sh\n{program}\n")
        script.chmod(0o755)
    monkeypatch.setattr(machine, "GPU_MEMORY", (str(script), machine.GPU_MEMORY[1]))
    assert this_machine().gpu_memory == expected
