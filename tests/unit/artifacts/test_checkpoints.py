from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from scaleup.artifacts import checkpoints
from scaleup.artifacts.checkpoints import (
    LAYOUT,
    LISTING,
    READ_BYTES,
    Layout,
    checkpoint_folder,
    damage_of,
    latest_checkpoint,
    newest_sound_checkpoint,
    prune_checkpoints,
    whole_checkpoints,
    write_listing,
)
from scaleup.artifacts.files import folder_aside
from scaleup.errors import ScaleupError


def save(checkpoints: Path, *steps: int) -> None:
    for step in steps:
        with folder_aside(checkpoint_folder(checkpoints, step)) as aside:
            (aside / "model.safetensors").write_bytes(b"weights" * step)
            (aside / "rng").mkdir()
            (aside / "rng/rank0.pt").write_bytes(b"state")
            write_listing(aside, step)


def steps(checkpoints: Path) -> list[int]:
    return [checkpoint.step for checkpoint in whole_checkpoints(checkpoints)]


def test_oldest_first_however_they_were_written(tmp_path: Path) -> None:
    save(tmp_path, 100, 9, 20)
    assert steps(tmp_path) == [9, 20, 100]
    latest = latest_checkpoint(tmp_path)
    assert latest is not None
    assert latest.path == tmp_path / "step-00000100"


def test_none_where_there_is_no_folder(tmp_path: Path) -> None:
    assert steps(tmp_path / "nowhere") == []
    assert latest_checkpoint(tmp_path / "nowhere") is None
    prune_checkpoints(tmp_path / "nowhere", keep=1, also=None)


def listing(content: object) -> Callable[[Path], object]:
    return lambda folder: (folder / LISTING).write_text(content if isinstance(content, str) else json.dumps(content))


FILES = {"model.safetensors": 7 * 7, "rng/rank0.pt": 5}
DAMAGE: dict[str, Callable[[Path], object]] = {
    "truncated": lambda folder: (folder / "model.safetensors").write_bytes(b"weig"),
    "longer": lambda folder: (folder / "model.safetensors").write_bytes(b"weights" * 8),
    "a file gone": lambda folder: (folder / "rng/rank0.pt").unlink(),
    "a folder gone": lambda folder: shutil.rmtree(folder / "rng"),
    "no listing": lambda folder: (folder / LISTING).unlink(),
    "an empty listing": listing(""),
    "half a listing": listing('{"step": 7, "files": {"model'),
    "a listing that is a list": listing([7]),
    "a listing of null": listing("null"),
    "files in a list": listing({"step": 7, "files": list(FILES)}),
    "files of null": listing({"step": 7, "files": None}),
    "no files": listing({"step": 7}),
    "no step": listing({"files": FILES}),
    "a step of text": listing({"step": "7", "files": FILES}),
    "another step": listing({"step": 8, "files": FILES}),
    "a listing that is no text": lambda folder: (folder / LISTING).write_bytes(b"\xff\xfe\x00"),
    "renamed": lambda folder: folder.rename(folder.with_name("step-00000008")),
    "renamed, unpadded": lambda folder: folder.rename(folder.with_name("step-7")),
    "renamed, a copy": lambda folder: folder.rename(folder.with_name("step-00000007-copy")),
    "foreign": lambda folder: (shutil.rmtree(folder), folder.mkdir(), (folder / "notes.txt").touch()),
    "a file": lambda folder: (shutil.rmtree(folder), folder.touch()),
    "still aside": lambda folder: folder.rename(folder.with_name(".step-00000007.tmp")),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_what_is_not_whole_is_no_checkpoint(name: str, tmp_path: Path) -> None:
    save(tmp_path, 3, 7)
    assert steps(tmp_path) == [3, 7]
    DAMAGE[name](tmp_path / "step-00000007")
    assert steps(tmp_path) == [3]
    latest = latest_checkpoint(tmp_path)
    assert latest is not None
    assert latest.step == 3


def test_a_step_is_saved_again(tmp_path: Path) -> None:
    save(tmp_path, 3)
    (tmp_path / "step-00000003/model.safetensors").unlink()
    save(tmp_path, 3)
    assert steps(tmp_path) == [3]


@pytest.mark.parametrize(
    ("keep", "also", "left"),
    [
        (2, None, [4, 5]),
        (2, 1, [1, 4, 5]),
        (2, 5, [4, 5]),
        (1, 3, [3, 5]),
        (1, 99, [5]),
        (5, None, [1, 2, 3, 4, 5]),
        (9, 2, [1, 2, 3, 4, 5]),
    ],
)
def test_pruning_keeps_the_newest_and_the_best(tmp_path: Path, keep: int, also: int | None, left: list[int]) -> None:
    save(tmp_path, 1, 2, 3, 4, 5)
    prune_checkpoints(tmp_path, keep, also)
    assert steps(tmp_path) == left
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"step-{step:08d}" for step in left]


def test_pruning_counts_whole_checkpoints_only(tmp_path: Path) -> None:
    """A broken newest one must not push the last whole one out."""
    save(tmp_path, 1, 2, 3)
    (tmp_path / "step-00000003/model.safetensors").unlink()
    prune_checkpoints(tmp_path, keep=1, also=None)
    assert steps(tmp_path) == [2]


def test_pruning_removes_leftovers_and_nothing_foreign(tmp_path: Path) -> None:
    save(tmp_path, 1)
    (tmp_path / ".step-00000002.tmp").mkdir()
    (tmp_path / ".step-00000002.tmp/half").touch()
    (tmp_path / "mine").mkdir()
    (tmp_path / "notes.txt").touch()
    prune_checkpoints(tmp_path, keep=1, also=None)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "notes.txt", "step-00000001"]


def layout(place: str) -> Layout:
    strategy, _, processes = place.partition("@")
    processes, _, offload = processes.partition("+")
    return Layout(strategy, int(processes), [offload] if offload else [], ["weight"])


@pytest.mark.parametrize(
    ("before", "after", "directly"),
    [
        ("single@1", "ddp@2", True),
        ("ddp@2", "single@1", True),
        ("ddp@2", "fsdp2@2", False),
        ("fsdp2@2", "fsdp2@1", True),
        ("fsdp2@2", "ddp@2", False),
        ("zero2@2", "zero2@2", True),
        ("zero2@2", "zero2@1", False),
        ("zero1@2", "zero2@2", False),
        ("zero3@2+optimizer", "zero3@2", False),
        ("zero3@2+optimizer", "zero3@2+optimizer", True),
        ("zero1@2", "ddp@2", False),
        ("single@1", "zero1@1", False),
    ],
)
def test_which_checkpoints_the_writing_library_loads_itself(before: str, after: str, directly: bool) -> None:
    assert layout(before).loads_into(layout(after)) == directly


def test_a_layout_is_read_back(tmp_path: Path) -> None:
    layout("zero3@2+optimizer").save(tmp_path)
    assert Layout.read(tmp_path) == layout("zero3@2+optimizer")


@pytest.mark.parametrize("content", [None, "", "[]", "{}", '{"strategy": "ddp"}'])
def test_a_checkpoint_that_does_not_say_what_wrote_it(content: str | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / LAYOUT).write_text(content)
    with pytest.raises(ScaleupError, match="does not say which strategy wrote it"):
        Layout.read(tmp_path)


def flip_a_bit(file: Path, place: int = 3) -> None:
    content = bytearray(file.read_bytes())
    content[place] ^= 1
    file.write_bytes(content)


class TestDamage:
    """What no size tells."""

    def test_a_sound_one(self, tmp_path: Path) -> None:
        save(tmp_path, 3, 7)
        newest, lines = newest_sound_checkpoint(tmp_path)
        assert newest == latest_checkpoint(tmp_path) and newest is not None
        assert (lines, damage_of(newest)) == ([], "")

    @pytest.mark.parametrize("name", ["model.safetensors", "rng/rank0.pt"])
    def test_a_flipped_bit_sets_it_aside(self, tmp_path: Path, name: str) -> None:
        save(tmp_path, 3, 7)
        flip_a_bit(tmp_path / "step-00000007" / name)
        assert steps(tmp_path) == [3, 7], "its sizes are right"
        newest, lines = newest_sound_checkpoint(tmp_path)
        assert newest is not None and newest.step == 3
        why = f"{name} does not match its checksum; it is step-00000007.damaged now"
        assert lines == [f"checkpoint step-00000007 is not used: {why}"]
        assert steps(tmp_path) == [3], "nobody takes it for one again"
        assert (tmp_path / "step-00000007.damaged" / name).is_file()
        assert newest_sound_checkpoint(tmp_path) == (newest, [])

    def test_one_that_is_not_whole_stays_where_it_is(self, tmp_path: Path) -> None:
        save(tmp_path, 3, 7, 9)
        (tmp_path / "step-00000009/model.safetensors").write_bytes(b"weig")
        (tmp_path / "step-00000007/rng/rank0.pt").unlink()
        newest, lines = newest_sound_checkpoint(tmp_path)
        assert newest is not None and newest.step == 3
        assert lines == [
            "checkpoint step-00000009 is not used: model.safetensors has 4 bytes, and 63 were written",
            "checkpoint step-00000007 is not used: rank0.pt is missing",
        ]
        assert (tmp_path / "step-00000009").is_dir()

    def test_none_is_left(self, tmp_path: Path) -> None:
        save(tmp_path, 7)
        flip_a_bit(tmp_path / "step-00000007/model.safetensors")
        newest, lines = newest_sound_checkpoint(tmp_path)
        assert (newest, len(lines)) == (None, 1)
        assert newest_sound_checkpoint(tmp_path / "nowhere") == (None, [])

    def test_older_ones_are_not_read(self, tmp_path: Path) -> None:
        save(tmp_path, 3, 7)
        flip_a_bit(tmp_path / "step-00000003/model.safetensors")
        assert newest_sound_checkpoint(tmp_path)[1] == []
        assert steps(tmp_path) == [3, 7]

    def test_a_step_is_damaged_twice(self, tmp_path: Path) -> None:
        for _ in range(2):
            save(tmp_path, 7)
            flip_a_bit(tmp_path / "step-00000007/model.safetensors")
            assert newest_sound_checkpoint(tmp_path)[0] is None

    def test_one_from_before_there_were_checksums(self, tmp_path: Path) -> None:
        save(tmp_path, 7)
        content = json.loads((tmp_path / "step-00000007" / LISTING).read_text())
        del content["crc32"]
        (tmp_path / "step-00000007" / LISTING).write_text(json.dumps(content))
        flip_a_bit(tmp_path / "step-00000007/model.safetensors")
        newest, lines = newest_sound_checkpoint(tmp_path)
        assert newest is not None and lines == []

    def test_what_cannot_be_read_for_a_moment_is_kept(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A network file system may answer with EIO while it renames as told: no checkpoint may be lost to that."""
        save(tmp_path, 3, 7)
        with monkeypatch.context() as patch:
            patch.setattr(checkpoints, "checksum_of", lambda file: os.close(-1))
            with pytest.raises(OSError):
                newest_sound_checkpoint(tmp_path)
        newest, lines = newest_sound_checkpoint(tmp_path)
        assert newest == latest_checkpoint(tmp_path) and newest is not None and (newest.step, lines) == (7, [])

    def test_a_large_file_is_read_in_parts(self, tmp_path: Path) -> None:
        with folder_aside(checkpoint_folder(tmp_path, 1)) as aside:
            (aside / "large").write_bytes(bytes(range(256)) * (3 * READ_BYTES // 256) + b"end")
            write_listing(aside, 1)
        newest, _ = newest_sound_checkpoint(tmp_path)
        assert newest is not None and damage_of(newest) == ""
        flip_a_bit(newest.path / "large", 2 * READ_BYTES + 5)
        assert damage_of(newest) == "large does not match its checksum"
