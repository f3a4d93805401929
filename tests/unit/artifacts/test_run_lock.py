"""Who has the lock of a run: the kernel says so, and looking changes nothing."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from scaleup.artifacts import run_lock
from scaleup.artifacts.run_folder import RunFolder
from scaleup.artifacts.run_lock import Holder, holder_of, lock_holders
from scaleup.errors import ScaleupError
from tests.unit.runs.made import held


def test_a_run_that_goes_on(run: RunFolder) -> None:
    assert holder_of(run) is None, "there is no lock file yet"
    with held(run) as process:
        assert holder_of(run) == Holder(process.pid, 0)
        assert holder_of(RunFolder(run.path.with_name("y"))) is None
    assert holder_of(run) is None, "the file is still there"


def test_looking_takes_no_lock(run: RunFolder) -> None:
    with run.locked():
        assert holder_of(run) == Holder(os.getpid(), 0)
        with pytest.raises(ScaleupError, match="is running now"), run.locked():
            pass
    with run.locked():  # nor does it let go of one
        holder_of(run)
        assert holder_of(run) == Holder(os.getpid(), 0)


def test_a_node_that_is_not_the_first(run: RunFolder) -> None:
    with held(run, node_rank=2) as process:
        assert holder_of(run) == Holder(process.pid, 2)
        with run.locked():
            assert holder_of(run) == Holder(os.getpid(), 0), "the first node's comes first"


def test_an_open_file_is_no_lock(run: RunFolder) -> None:
    other = RunFolder(run.path.with_name("y"))
    with other.locked(), run.lock_file().open("w"):
        assert holder_of(run) is None, "of a process that has another file locked, and so is looked at"
        assert holder_of(other, lock_holders()) == Holder(os.getpid(), 0)


def test_a_system_without_such_a_list(run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_lock, "LOCKS", tmp_path / "none")
    with run.locked():
        assert lock_holders() == {}
