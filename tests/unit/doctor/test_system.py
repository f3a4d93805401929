"""Limits and locks, on real files and open file descriptors."""

from __future__ import annotations

import os
import resource
import time
from pathlib import Path

import pytest

from scaleup.doctor.system import (
    compile_folders,
    holders,
    limit_findings,
    lock_findings,
    locked_memory,
    open_files,
    shared_memory,
    thread_findings,
)


def aged(lock: Path, hours: float) -> Path:
    lock.parent.mkdir(parents=True, exist_ok=True)
    lock.touch()
    then = time.time() - 3600 * hours
    os.utime(lock, (then, then))
    return lock


def test_a_lock_that_a_killed_build_left(tmp_path: Path) -> None:
    lock = aged(tmp_path / "py311_cpu" / "fused_adam" / "lock", 5)
    (found,) = lock_findings([tmp_path, tmp_path / "not-there"])
    assert found.level == "warn" and "5 h old" in found.what and f"rm {lock}" in found.remedy
    assert lock.exists(), "the doctor removes nothing"


def test_a_lock_that_is_held_or_new_is_none_of_our_business(tmp_path: Path) -> None:
    aged(tmp_path / "new" / "lock", 0.5)
    held = aged(tmp_path / "held" / "lock", 5)
    with held.open():
        (found,) = lock_findings([tmp_path])
        assert found.level == "ok"
        assert os.getpid() in holders(held)
    (found,) = lock_findings([tmp_path])
    assert found.level == "warn"


def test_where_builds_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "torch"))
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "triton"))
    assert compile_folders(tmp_path / "ops") == [tmp_path / name for name in ("torch", "triton", "ops")]
    monkeypatch.delenv("TORCH_EXTENSIONS_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert compile_folders(None) == [tmp_path / "cache" / "torch_extensions", tmp_path / "triton"]


def test_few_open_files() -> None:
    assert open_files(1024).level == "warn" and open_files(65536).level == "ok"
    assert open_files(resource.RLIM_INFINITY).what == "no limit"


def test_locked_memory_matters_where_there_is_infiniband(tmp_path: Path) -> None:
    assert locked_memory(8 * 2**20).level == "warn" and locked_memory(resource.RLIM_INFINITY).level == "ok"
    assert "locked memory" not in {finding.name for finding in limit_findings(tmp_path, tmp_path / "none")}
    (tmp_path / "infiniband" / "mlx5_0").mkdir(parents=True)
    assert "locked memory" in {finding.name for finding in limit_findings(tmp_path, tmp_path / "infiniband")}


def test_shared_memory_that_is_not_there(tmp_path: Path) -> None:
    assert shared_memory(tmp_path / "shm").level == "warn"


def test_variables_that_hold_no_number_of_threads() -> None:
    odd = {"OMP_NUM_THREADS": "4,2", "MKL_NUM_THREADS": "", "NUMEXPR_MAX_THREADS": "0"}
    found = list(thread_findings({**odd, "OPENBLAS_NUM_THREADS": "4"}))
    assert {finding.name: finding.level for finding in found} == dict.fromkeys(odd, "warn")
    assert "'4,2' is no number above 0" in found[0].what and "export OMP_NUM_THREADS=4, or unset it" in found[0].remedy
