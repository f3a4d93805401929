"""What a check that takes long says on stderr."""

from __future__ import annotations

import sys
from threading import Event

import pytest

from scaleup.describe import progress as module
from scaleup.describe.progress import shown_progress


class Told:
    """A stream that somebody waits for."""

    def __init__(self) -> None:
        self.text, self.is_written = "", Event()

    def write(self, text: str) -> None:
        self.text += text
        if text.endswith("\n"):
            self.is_written.set()

    def flush(self) -> None: ...


def test_the_place_is_told_while_it_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    told = Told()
    monkeypatch.setattr(module, "FIRST_SECONDS", 0.001)
    monkeypatch.setattr(module, "NEXT_SECONDS", 0.001)
    monkeypatch.setattr(sys, "stderr", told)
    with shown_progress() as progress:
        for place in ("rows.jsonl:1", "rows.jsonl:2", "rows.jsonl:2"):
            progress.at(place)
        told.is_written.clear()
        assert told.is_written.wait(30)
    assert told.text.splitlines()[-1] == "checking rows.jsonl:2 (2 so far)"


def test_what_takes_a_moment_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with shown_progress() as progress:
        progress.at("rows.jsonl:1")
    assert capsys.readouterr().err == ""
