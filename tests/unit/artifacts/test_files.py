from __future__ import annotations

import os
import resource
import signal
from pathlib import Path

import pytest

from scaleup.artifacts.files import (
    aside_of,
    commit_folder,
    folder_aside,
    folder_bytes,
    folder_problem,
    read_json,
    read_json_lines,
    write_json,
    write_problem,
    write_text,
)
from scaleup.errors import ScaleupError


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_text_replaces_text(tmp_path: Path) -> None:
    write_text(tmp_path / "a", "old")
    write_text(tmp_path / "a", "né\n")
    assert (tmp_path / "a").read_bytes() == "né\n".encode()
    assert names(tmp_path) == ["a"]


def test_lines_of_json_end_where_json_says(tmp_path: Path) -> None:
    write_text(tmp_path / "a", '{"b": "one\u2028two\x85three"}\n{"b": ""}\n')
    assert [row["b"] for row in read_json_lines(tmp_path / "a")] == ["one\u2028two\x85three", ""]


def test_text_that_cannot_be_written_leaves_the_old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_text(tmp_path / "a", "old")
    with pytest.raises(UnicodeEncodeError):
        write_text(tmp_path / "a", "new \ud800")
    monkeypatch.setattr("os.fsync", disk_is_full)
    with pytest.raises(OSError, match="No space"):
        write_text(tmp_path / "a", "new")
    assert (tmp_path / "a").read_text() == "old"
    assert names(tmp_path) == ["a"]


@pytest.mark.parametrize("kind", ["link", "file"])
def test_a_secret_does_not_go_into_what_somebody_laid_at_its_name_aside(tmp_path: Path, kind: str) -> None:
    aside, theirs = tmp_path / f".secret.{os.getpid()}.tmp", tmp_path / "theirs"
    theirs.write_text("")
    theirs.chmod(0o666)
    if kind == "link":
        aside.symlink_to(theirs)
    else:
        aside.hardlink_to(theirs)
    write_text(tmp_path / "secret", "key", is_secret=True)
    assert theirs.read_text() == ""
    assert (tmp_path / "secret").stat().st_mode & 0o777 == 0o600
    assert names(tmp_path) == ["secret", "theirs"]


def test_json(tmp_path: Path) -> None:
    value = {"a": [1, 2.5, None, "é"]}
    write_json(tmp_path / "a.json", value)
    assert read_json(tmp_path / "a.json") == value
    with pytest.raises(TypeError):
        write_json(tmp_path / "a.json", {"a": object()})
    assert read_json(tmp_path / "a.json") == value


def test_a_folder_appears_whole(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "model"
    with folder_aside(folder) as aside:
        (aside / "sub").mkdir()
        (aside / "sub/weights").write_text("new")
        assert not folder.exists()
    assert (folder / "sub/weights").read_text() == "new"
    assert names(folder.parent) == ["model"]


def test_a_folder_replaces_an_older_one_as_a_whole(tmp_path: Path) -> None:
    old = tmp_path / "model"
    old.mkdir()
    (old / "only in the old").touch()
    with folder_aside(old) as aside:
        (aside / "weights").touch()
        assert names(old) == ["only in the old"]
    assert names(tmp_path) == ["model"]
    assert names(old) == ["weights"]


FULL = "I/O error: No space left on device (os error 28)"
"""Is what safetensors says."""


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (ValueError(), ValueError),
        (KeyboardInterrupt(), KeyboardInterrupt),
        (SystemExit(), SystemExit),
        (OSError("No space left on device"), ScaleupError),
        (RuntimeError(FULL), ScaleupError),
    ],
)
def test_a_folder_that_fails_leaves_nothing_but_the_old(
    tmp_path: Path, error: BaseException, told: type[BaseException]
) -> None:
    """And a full disk is told in a sentence."""

    def write(folder: Path) -> None:
        with folder_aside(folder) as aside:
            (aside / "half").touch()
            raise error

    (tmp_path / "model").mkdir()
    (tmp_path / "model/weights").touch()
    for name in ("model", "fresh"):
        with pytest.raises(told, match=r"cannot be written: .*No space" if told is ScaleupError else None):
            write(tmp_path / name)
    assert names(tmp_path) == ["model"]
    assert names(tmp_path / "model") == ["weights"]


def test_leftovers_of_a_killed_writer_are_not_taken_in(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    aside_of(folder).mkdir()
    (aside_of(folder) / "stale").touch()
    with folder_aside(folder) as aside:
        (aside / "fresh").touch()
    assert names(folder) == ["fresh"]
    assert names(tmp_path) == ["model"]


def test_a_full_disk_while_committing_keeps_the_old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "weights").write_text("old")
    monkeypatch.setattr("os.fsync", disk_is_full)
    with pytest.raises(ScaleupError, match="No space"), folder_aside(folder) as aside:
        (aside / "weights").write_text("new")
    assert (folder / "weights").read_text() == "old"
    assert names(tmp_path) == ["model"]


def test_a_rename_that_fails_brings_the_old_back(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "weights").write_text("old")
    with pytest.raises(FileNotFoundError):  # nothing was written aside
        commit_folder(folder)
    assert (folder / "weights").read_text() == "old"
    assert names(tmp_path) == ["model"]


def disk_is_full(descriptor: int) -> None:
    raise OSError(28, "No space left on device")


def test_bytes_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(bytes(3))
    (tmp_path / "b.txt").write_bytes(bytes(4))
    (tmp_path / "inner.bin").mkdir()
    assert folder_bytes(tmp_path) == 7
    assert folder_bytes(tmp_path, "*.bin") == 3


class TestWhereNothingCanBeWritten:
    def test_what_can_be_written_or_made_keeps_no_trace(self, tmp_path: Path) -> None:
        before = tmp_path.stat().st_mtime_ns
        assert folder_problem(tmp_path) == folder_problem(tmp_path / "a/b") == write_problem(tmp_path) == ""
        assert names(tmp_path) == [] and tmp_path.stat().st_mtime_ns == before

    def test_links(self, tmp_path: Path) -> None:
        (tmp_path / "runs").symlink_to("/nonexistent/scratch/runs")
        dangling = f"{tmp_path}/runs is a link to /nonexistent/scratch/runs, which is not there"
        assert folder_problem(tmp_path / "runs") == folder_problem(tmp_path / "runs/a/b") == dangling
        (tmp_path / "loop").symlink_to("loop")
        assert "Too many levels of symbolic links" in folder_problem(tmp_path / "loop/a")
        (tmp_path / "whole").mkdir()
        (tmp_path / "good").symlink_to("whole")
        assert folder_problem(tmp_path / "good/a") == ""

    def test_a_file_in_the_way(self, tmp_path: Path) -> None:
        (tmp_path / "rows").touch()
        assert (
            folder_problem(tmp_path / "rows") == folder_problem(tmp_path / "rows/a") == f"{tmp_path}/rows is no folder"
        )

    @pytest.mark.parametrize("place", ["/proc/runs", "/sys/a/b", "/dev/null", "/dev/full/a", "/" + "x" * 300, "a\0b"])
    def test_elsewhere(self, place: str) -> None:
        assert folder_problem(Path(place))

    def test_a_full_disk(self, tmp_path: Path) -> None:
        """Files of this process may have no more than a few bytes: a write ends in EFBIG as it would in ENOSPC."""
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
        try:
            assert write_problem(tmp_path) == "File too large"
            assert folder_problem(tmp_path / "a") == f"{tmp_path}: File too large"
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
            signal.signal(signal.SIGXFSZ, before)
        assert names(tmp_path) == []

    def test_a_file_system_without_unnamed_files(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("scaleup.artifacts.files._takes_unnamed", lambda folder: False)
        assert write_problem(tmp_path) == "" and names(tmp_path) == []
        assert write_problem(tmp_path / "none") == "No such file or directory"
