"""How far a search is: a line where there is no terminal, bars where there is one."""

from __future__ import annotations

import io
import subprocess
from pathlib import Path

import pytest
from rich.console import Console

from scaleup.artifacts.study import Trial
from scaleup.studies import search_watch
from scaleup.studies.search_watch import SearchWatch
from scaleup.studies.shares import Slot
from scaleup.studies.trials import TrialProcess
from tests.unit.studies.test_search import search_of


def shown(is_terminal: bool) -> str:
    """What is shown of a search of which one trial has ended, and one is at step 3 of 4."""
    search = search_of(objectives={"eval_loss": "minimize"})
    record = search.new_record()
    params = {"train.learning_rate": 1e-3}
    record.trials = [Trial(number=0, params=params, state="finished", steps=4), Trial(number=1, params=params)]
    console = Console(file=io.StringIO(), width=150, force_terminal=is_terminal, color_system=None)
    run = search.trial_run(1)
    run.path.mkdir(parents=True)
    with subprocess.Popen(["true"]) as process, SearchWatch(search, record, 20, console) as watch:
        running = [TrialProcess(record.trials[1], Slot((0,), None), process)]
        watch.refresh(running)
        run.metrics_file.write_text('{"step": 2, "eval_loss": 2.5}\n{"step": 3, "loss": 1.25}\n{"st')
        watch.refresh(running)
        watch.say("s-001 has ended")
    return console.file.getvalue()  # type: ignore[attr-defined]


@pytest.fixture(autouse=True)
def at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(search_watch, "LOOK_SECONDS", 0.0)
    monkeypatch.setattr(search_watch, "LINE_SECONDS", 0.0)


def test_lines() -> None:
    first, second, last = shown(is_terminal=False).splitlines()
    assert first == "4 of 20 steps; s-001 step 0", "no step was made yet: nobody knows the pace"
    assert second == "7 of 20 steps; s-001 step 3 eval_loss 2.5 loss 1.25; 0 s to go"
    assert last == "s-001 has ended"


def test_bars() -> None:
    text = shown(is_terminal=True)
    assert "s steps" in text and "7/20" in text
    assert "s-001" in text and "eval_loss 2.5 loss 1.25" in text
    assert "s-001 has ended" in text
    assert " of 20 steps" not in text
