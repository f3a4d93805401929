"""What a run's rows are known by: the bytes of files, the values of the first rows, a hub's revision."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from scaleup.artifacts import data_file
from scaleup.artifacts.data_file import OTHER_ROWS, RunData, SourceMark, file_mark, hub_revision, source_marks
from scaleup.config.data import DataConfig
from scaleup.errors import ScaleupError


def write(path: Path, *texts: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")


def mark(root: Path, **source: Any) -> SourceMark:
    data = DataConfig.model_validate({"root": str(root), "text": "{text}", "train": [{"path": "rows.jsonl", **source}]})
    [found] = source_marks(data, ["train", "validation"]).values()
    return found


def cached_always(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    monkeypatch.setattr(data_file, "CACHED_BYTES", 0)
    monkeypatch.setattr(data_file, "SETTLED_SECONDS", -1.0)


@pytest.fixture(params=["read", "cached"], autouse=True)
def cache(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    if request.param == "cached":
        cached_always(monkeypatch, tmp_path / "cache")


def add_below(file: Path) -> None:
    write(file, "a", "b", "c", "d")


def turn_round(file: Path) -> None:
    write(file, "c", "b", "a")


def edit_in_place(file: Path) -> None:
    """By as many bytes, with its old time stamp."""
    before = file.stat()
    file.write_bytes(file.read_bytes().replace(b'"b"', b'"x"'))
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.mark.parametrize(
    ("change", "said"),
    [(add_below, "3 lines then, 4 lines now"), (turn_round, OTHER_ROWS), (edit_in_place, OTHER_ROWS)],
)
def test_other_rows_are_seen(tmp_path: Path, change: Callable[[Path], None], said: str) -> None:
    write(tmp_path / "rows.jsonl", "a", "b", "c")
    before = mark(tmp_path)
    change(tmp_path / "rows.jsonl")
    assert before.change(mark(tmp_path)) == said


def test_where_rows_lie_and_what_they_are_called_does_not_matter(tmp_path: Path) -> None:
    write(tmp_path / "rows.jsonl", "a", "b")
    before = mark(tmp_path)
    os.utime(tmp_path / "rows.jsonl", (1, 1))
    assert before.change(mark(tmp_path)) is None
    (tmp_path / "elsewhere").mkdir()
    shutil.move(tmp_path / "rows.jsonl", tmp_path / "elsewhere/other.jsonl")
    assert before.change(mark(tmp_path, path="elsewhere/other.jsonl")) is None
    (tmp_path / "link.jsonl").symlink_to(tmp_path / "elsewhere/other.jsonl")
    assert before.change(mark(tmp_path, path="link.jsonl")) is None


def test_a_folder_is_its_files_in_their_order(tmp_path: Path) -> None:
    for name in "ab":
        write(tmp_path / f"rows/{name}.jsonl", name)
    before = mark(tmp_path, path="rows")
    write(tmp_path / "rows/b.jsonl", "x", "y")
    assert before.change(mark(tmp_path, path="rows")) == "b.jsonl: 1 lines then, 2 lines now"
    write(tmp_path / "rows/b.jsonl", "b")
    write(tmp_path / "rows/c.jsonl", "c")
    assert before.change(mark(tmp_path, path="rows")) == "2 files then, 3 files now"
    (tmp_path / "rows/a.jsonl").rename(tmp_path / "rows/z.jsonl")
    (tmp_path / "rows/c.jsonl").unlink()
    assert before.change(mark(tmp_path, path="rows")) == f"b.jsonl: {OTHER_ROWS}; and 1 more files"


def test_of_max_rows_the_first_rows_count(tmp_path: Path) -> None:
    write(tmp_path / "rows.jsonl", "a", "b", "c")
    before = mark(tmp_path, max_rows=2)
    write(tmp_path / "rows.jsonl", "a", "b", "x", "y")
    assert before.change(mark(tmp_path, max_rows=2)) is None
    write(tmp_path / "rows.jsonl", "a", "x", "c")
    assert before.change(mark(tmp_path, max_rows=2)) == OTHER_ROWS
    write(tmp_path / "rows.jsonl", "a")
    assert before.change(mark(tmp_path, max_rows=2)) == "2 rows then, 1 rows now"


def test_an_array_is_known_by_its_bytes(tmp_path: Path) -> None:
    (tmp_path / "rows.json").write_text('[{"text": "a"}]')
    before = mark(tmp_path, path="rows.json")
    (tmp_path / "rows.json").write_text('[{"text": "abc"}]')
    assert before.change(mark(tmp_path, path="rows.json")) == "15 bytes then, 17 bytes now"


class TestHub:
    def mark(self, monkeypatch: pytest.MonkeyPatch, revision: str | None, path: str = "owner/name") -> SourceMark:
        monkeypatch.setattr(data_file, "hub_revision", lambda name: revision)
        return mark(Path("/nowhere"), path=path)

    def test_is_known_by_its_revision(self, monkeypatch: pytest.MonkeyPatch) -> None:
        before = self.mark(monkeypatch, "abc")
        assert before.change(self.mark(monkeypatch, "abc")) is None
        assert before.change(self.mark(monkeypatch, "def")) == "revision abc then, def now"
        assert before.change(self.mark(monkeypatch, None)) is None  # it cannot be known
        assert before.change(self.mark(monkeypatch, "abc", "owner/other")) == "owner/name then, owner/other now"

    def test_the_cache_tells_it_where_the_hub_cannot(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
        assert hub_revision("owner/name") is None
        (tmp_path / "datasets--owner--name/refs").mkdir(parents=True)
        (tmp_path / "datasets--owner--name/refs/main").write_text("abc")
        assert hub_revision("owner/name") == "abc"

    def test_a_file_in_its_place_is_a_change(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        write(tmp_path / "rows.jsonl", "a")
        assert self.mark(monkeypatch, "abc").change(mark(tmp_path)) == "owner/name then, rows.jsonl now"


def test_the_file(tmp_path: Path) -> None:
    write(tmp_path / "rows.jsonl", "a")
    data = RunData(sources={"data.train.0": mark(tmp_path)}, accepted=("once",))
    data.save(tmp_path / "data.json")
    assert RunData.read(tmp_path / "data.json") == data
    assert RunData.read(tmp_path / "none.json") is None
    (tmp_path / "data.json").write_text("{")
    with pytest.raises(ScaleupError, match=r"data\.json: cannot be read .*-> remove it if they are"):
        RunData.read(tmp_path / "data.json")


def test_a_large_file_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cached_always(monkeypatch, tmp_path / "cache")
    write(tmp_path / "rows.jsonl", "a")
    monkeypatch.setattr(data_file, "LONG_BYTES", 0)
    said: list[str] = []
    before = file_mark(tmp_path / "rows.jsonl", said.append)
    monkeypatch.setattr(data_file, "_read_mark", lambda file: pytest.fail("read again"))
    assert file_mark(tmp_path / "rows.jsonl", said.append) == before
    assert said == [f"reading {tmp_path}/rows.jsonl once (0 GiB), to know its rows again"]
