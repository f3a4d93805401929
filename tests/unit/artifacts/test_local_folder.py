"""A node's own folder: whose it is, what becomes of it, and where it lies if there is no room."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from scaleup.artifacts import local_folder as module
from scaleup.artifacts.local_folder import PREFIX, LocalFolder, local_folder

MAKES_ONE = """
import pathlib, sys, tempfile
tempfile.tempdir = sys.argv[1]
from scaleup.artifacts.local_folder import local_folder
with local_folder(pathlib.Path(sys.argv[1], "instead")) as folder:
    print(folder.path, flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The node's own."""
    disk = tmp_path / "tmp"
    disk.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(disk))
    return disk


def folders(disk: Path) -> list[Path]:
    return sorted(disk.glob(f"{PREFIX}*"))


def test_is_this_users_alone_and_gone_at_the_end(disk: Path, tmp_path: Path) -> None:
    with local_folder(tmp_path / "instead") as folder:
        assert folders(disk) == [folder.path]
        assert folder.path.stat().st_mode & 0o777 == 0o700
        assert folder.heartbeats.is_dir() and folder.why == ""
        (folder.heartbeats / "policy-rank0.json").write_text("{}")
    assert folders(disk) == []
    assert not (tmp_path / "instead").exists()


def test_is_gone_after_an_error(disk: Path, tmp_path: Path) -> None:
    with pytest.raises(KeyError), local_folder(tmp_path / "instead"):
        raise KeyError
    assert folders(disk) == []


def test_that_of_a_killed_agent_goes_with_the_next_and_that_of_a_living_one_stays(disk: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", MAKES_ONE, str(disk)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, text=True, **pipes) as lives, subprocess.Popen(command, text=True, **pipes) as dies:
        assert lives.stdout is not None and dies.stdout is not None
        of_living, of_dead = (Path(each.stdout.readline().strip()) for each in (lives, dies))  # type: ignore[union-attr]
        dies.send_signal(signal.SIGKILL)
        dies.wait(10)
        assert sorted([of_living, of_dead]) == folders(disk)
        with local_folder(tmp_path / "instead") as ours:
            assert sorted([of_living, ours.path]) == folders(disk)
        lives.communicate("")
    assert folders(disk) == []


def test_what_is_not_ours_stays(disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that is being made has no lock yet; one of another user may have any; and a link leads anywhere."""
    (disk / f"{PREFIX}begun").mkdir()
    (tmp_path / "else").mkdir()
    (tmp_path / "else/.lock").touch()
    (disk / f"{PREFIX}link").symlink_to(tmp_path / "else")
    (disk / f"{PREFIX}file").touch()
    with local_folder(tmp_path / "instead"):
        pass
    assert [each.name for each in folders(disk)] == [f"{PREFIX}begun", f"{PREFIX}file", f"{PREFIX}link"]
    assert (tmp_path / "else/.lock").exists()
    (disk / f"{PREFIX}begun/.lock").touch()
    monkeypatch.setattr(module.os, "getuid", lambda: os.geteuid() + 1)
    with local_folder(tmp_path / "instead"):
        pass
    assert (disk / f"{PREFIX}begun").exists()


@pytest.mark.parametrize("trouble", ["there is none", "it is full", "it is the working folder"])
def test_lies_in_the_run_folder_where_there_is_no_other(
    disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trouble: str
) -> None:
    if trouble == "there is none":
        disk.rmdir()
    elif trouble == "it is full":
        monkeypatch.setattr(module, "write_problem", lambda folder: "No space left on device")
    else:
        monkeypatch.chdir(disk)
    with local_folder(tmp_path / "instead") as folder:
        assert folder.path == tmp_path / "instead" and folder.heartbeats.is_dir()
        assert {"there is none": "No such file", "it is full": "No space", "it is the working folder": "set TMPDIR"}[
            trouble
        ] in folder.why
    assert not folder.path.exists() and folders(tmp_path / "tmp") == []


def test_a_run_may_be_started_where_temporary_files_go(
    disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(disk)
    monkeypatch.setenv("TMPDIR", str(disk))
    with local_folder(tmp_path / "instead") as folder:
        assert folder.path.parent == disk and folder.why == ""


def test_who_is_there(tmp_path: Path) -> None:
    folder = LocalFolder(tmp_path)
    folder.heartbeats.mkdir()
    for name, text in (("policy-rank0", '{"pid": 7}'), ("policy-rank1", "{"), ("reward-rank0", '{"pid": 9}')):
        (folder.heartbeats / f"{name}.json").write_text(text)
    (folder.heartbeats / ".agent.json").write_text(json.dumps({"pid": 1}))
    assert folder.pids() == {"policy-rank0": 7, "reward-rank0": 9}
    assert folder.ranks("policy") == ["policy-rank0", "policy-rank1"]
    folder.forget("reward")
    assert folder.ranks("reward") == [] and folder.ranks("policy") != []
