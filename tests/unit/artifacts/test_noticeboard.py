"""What is posted is read whole or not at all, and who says nothing new is counted by looks."""

from __future__ import annotations

from pathlib import Path

import pytest

from scaleup.artifacts.noticeboard import NoticeBoard, Silence


def number(value: object) -> int:
    assert isinstance(value, dict)
    return int(value["number"])


class TestNoticeBoard:
    def test_the_last_notice_is_read(self, tmp_path: Path) -> None:
        board = NoticeBoard(tmp_path)
        assert board.read("a", number) is None and board.lacks("a")
        for value in (1, 2):
            board.post("a", {"number": value})
        assert NoticeBoard(tmp_path).read("a", number) == 2
        assert [file.name for file in tmp_path.iterdir()] == ["a.json"]
        board.withdraw("a")
        board.withdraw("a")
        assert board.read("a", number) is None and board.lacks("a")

    @pytest.mark.parametrize("text", ["", "{", "{}", '{"number": "x"}', '{"number": null}'])
    def test_one_that_cannot_be_read_now_is_none(self, tmp_path: Path, text: str) -> None:
        (tmp_path / "a.json").write_text(text)
        board = NoticeBoard(tmp_path)
        assert board.read("a", number) is None and not board.lacks("a")

    @pytest.mark.parametrize("is_durable", [True, False])
    def test_what_cannot_be_posted_leaves_nothing(self, tmp_path: Path, is_durable: bool) -> None:
        board = NoticeBoard(tmp_path, is_durable=is_durable)
        (tmp_path / "a.json").mkdir()
        with pytest.raises(OSError, match="directory"):
            board.post("a", {"number": 1})
        assert [file.name for file in tmp_path.iterdir()] == ["a.json"]

    def test_a_secret_is_for_this_user_only(self, tmp_path: Path) -> None:
        NoticeBoard(tmp_path, is_secret=True).post("a", {})
        assert (tmp_path / "a.json").stat().st_mode & 0o077 == 0


class TestSilence:
    def test_counts_looks_and_not_time(self) -> None:
        silence = Silence()
        assert silence.looks("a") == 0
        for beat, expected in ((1, 0), (1, 1), (1, 2), (2, 0), (2, 1)):
            silence.note({"a": beat})
            assert silence.looks("a") == expected

    def test_one_that_cannot_be_read_has_said_nothing(self) -> None:
        silence = Silence()
        silence.note({"a": 1, "b": 1})
        silence.note({"b": 2})
        silence.note({"b": 3})
        assert (silence.looks("a"), silence.looks("b")) == (2, 0)

    def test_one_that_is_expected_is_missed_from_then_on(self) -> None:
        silence = Silence(expected=["a"])
        silence.note({})
        assert (silence.looks("a"), silence.looks("b")) == (1, 0)
        silence.expect(["a", "b"])
        silence.note({})
        assert (silence.looks("a"), silence.looks("b")) == (2, 1), "expecting again forgets nothing"
