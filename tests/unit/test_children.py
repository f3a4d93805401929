"""What further Python processes of ours import, and how many threads they are told to have."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import scaleup
from scaleup.children import COUNTS, PLACES, odd_counts, python_environment

OWN = Path(scaleup.__file__).parent


@pytest.mark.parametrize("path", ["{other}", ":{other}", ""])
def test_a_child_imports_this_package_and_nothing_of_the_working_folder(
    path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "other"
    (other / "scaleup").mkdir(parents=True)
    (other / "scaleup/__init__.py").write_text("raise ImportError('another package of this name')")
    (other / "beside.py").touch()
    for name in ("random.py", "json.py", "types.py"):
        (tmp_path / name).write_text("raise ImportError('what lies in the working folder')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", path.format(other=other))
    found = "import random, json, types, scaleup; print(scaleup.__file__)" + ("; import beside" if path else "")
    (other / "probe.py").write_text(found)
    command = [sys.executable, *(["-m", "probe"] if path else ["-c", found])]
    answer = subprocess.run(command, capture_output=True, text=True, env=python_environment(), check=False)
    assert answer.stdout.strip() == str(OWN / "__init__.py"), answer.stderr


@pytest.mark.parametrize("value", ["4,2", "", "0", "many", "-1", "1.5"])
def test_what_is_no_number_of_threads_reaches_nobody(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Accelerate and others read these with `int`."""
    for name in COUNTS:
        monkeypatch.setenv(name, value)
    assert odd_counts(os.environ) == dict.fromkeys(COUNTS, value)
    assert not set(COUNTS) & python_environment().keys()
    told = python_environment(3)
    assert {name: told[name] for name in COUNTS if name in told} == {"OMP_NUM_THREADS": "3", "MKL_NUM_THREADS": "3"}


def test_what_another_launcher_said_is_not_for_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WORLD_SIZE", "RANK", "MASTER_PORT", "PET_NNODES", "PMI_SIZE"):
        monkeypatch.setenv(name, "8")
    monkeypatch.setenv("PET_LOG_DIR", "logs")
    environment = python_environment()
    assert not environment.keys() & set(PLACES) and environment["PET_LOG_DIR"] == "logs"


def test_a_number_of_threads_is_the_plans_in_a_run_and_the_users_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    assert odd_counts({"OMP_NUM_THREADS": "7"}) == {}
    assert python_environment()["OMP_NUM_THREADS"] == "7"
    assert python_environment(2)["OMP_NUM_THREADS"] == "2"


def test_nothing_is_optimized_away(monkeypatch: pytest.MonkeyPatch) -> None:
    """Transformers needs its docstrings, and asserts are our own checks."""
    monkeypatch.setenv("PYTHONOPTIMIZE", "2")
    assert "PYTHONOPTIMIZE" not in python_environment()
