from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from scaleup.artifacts.local_folder import LocalFolder
from scaleup.artifacts.run_folder import RunFolder
from scaleup.launcher.watch import LINE_SECONDS, Watch
from tests.unit.launcher.plans import local_of


class Seen:
    """A watch on a node's folder, what it printed so far, and a clock that the test moves."""

    def __init__(self, local: LocalFolder, clock: list[float], terminal: bool = False) -> None:
        self.local, self.clock = local, clock
        self.printed = io.StringIO()
        self.watch = Watch(local, Console(file=self.printed, force_terminal=terminal, width=100), {"policy": ""})

    def report(self, phase: str, done: int = 0, total: int | None = None, **shown: Any) -> list[str]:
        position = {"phase": phase, "done": done, "total": total, **shown}
        self.local.progress_file("policy").write_text(json.dumps(position))
        return self.refresh()

    def refresh(self) -> list[str]:
        before = len(self.printed.getvalue())
        self.watch.refresh()
        return self.printed.getvalue()[before:].splitlines()


@pytest.fixture
def seen(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> Seen:
    clock = [1000.0]
    monkeypatch.setattr("scaleup.launcher.watch.time.monotonic", lambda: clock[0])
    return Seen(local_of(run), clock)


def test_nothing_until_there_is_something(seen: Seen) -> None:
    assert seen.refresh() == []


def test_each_phase_has_a_line(seen: Seen) -> None:
    assert seen.report("reading data") == ["reading data"]
    assert seen.report("loading the model") == ["loading the model"]
    assert seen.report("training", 1, 60, loss="2.5", rows=8) == ["training 1/60 loss 2.5 rows 8"]


def test_a_log_is_not_flooded(seen: Seen) -> None:
    seen.report("training", 1, 60)
    assert [seen.report("training", step, 60) for step in range(2, 50)] == [[]] * 48
    seen.clock[0] += LINE_SECONDS
    assert seen.report("training", 50, 60) == ["training 50/60"]
    assert seen.report("training", 51, 60) == []


def test_the_end_of_a_phase_has_a_line(seen: Seen) -> None:
    seen.report("training", 1, 60)
    assert seen.report("training", 60, 60) == ["training 60/60"]


def test_the_same_position_is_said_once(seen: Seen) -> None:
    seen.report("training", 60, 60)
    seen.clock[0] += LINE_SECONDS
    assert seen.refresh() == []


@pytest.mark.parametrize("content", [b"", b'{"phase": "tr', b"\xff"])
def test_a_half_written_position_is_passed_over(seen: Seen, content: bytes) -> None:
    seen.report("training", 1, 60)
    seen.local.progress_file("policy").write_bytes(content)
    assert seen.refresh() == []
    seen.local.progress_file("policy").unlink()
    assert seen.refresh() == []
    assert seen.report("evaluating", 0, 5) == ["evaluating 0/5"]


def test_a_terminal_has_a_bar(run: RunFolder) -> None:
    seen = Seen(local_of(run), [0.0], terminal=True)
    with seen.watch:
        seen.report("training", 15, 60, loss="2.5")
    assert "training" in seen.printed.getvalue()
    assert "15/60" in seen.printed.getvalue()
    assert "loss 2.5" in seen.printed.getvalue()


def test_a_log_has_no_bar(seen: Seen, tmp_path: Path) -> None:
    with seen.watch:
        seen.report("training", 15, 60)
    assert seen.printed.getvalue() == "training 15/60\n"


def test_what_a_group_has_to_say(seen: Seen) -> None:
    """Whole lines, once each, in their own words."""
    notes = seen.local.notes_file("policy")
    notes.write_text("checkpoint [7] is not used: 5 %\nthe run")
    assert seen.refresh() == ["checkpoint [7] is not used: 5 %"]
    assert seen.refresh() == []
    with notes.open("a") as file:
        file.write(" goes on from step 3\n")
    assert seen.report("training", 1, 60) == ["the run goes on from step 3", "training 1/60"]
