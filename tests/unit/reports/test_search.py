"""The table of a search: best first, what was pruned in brackets, what failed with its reason."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from scaleup.artifacts.study import StudyFolder, StudyRecord, Trial
from scaleup.reports.search import NUM_TRIALS_SHOWN, show_study, trial_line

LOSS = {"loss": "minimize"}
TRIALS = [
    Trial(number=0, params={"a.b": 1e-5}, state="finished", steps=12, values={"loss": 2.0}),
    Trial(number=1, params={"a.b": [1, 2]}, state="pruned", steps=4, rungs={4: 3.25}),
    Trial(number=2, params={"a.b": None}, state="failed", steps=1, error="training step 2: the loss is nan"),
    Trial(number=3, params={"a.b": "x"}, state="finished", steps=12, values={"loss": 1.5}),
]


def study(*trials: Trial, **objectives: str) -> StudyRecord:
    record = {"study": "s", "definition": {}, "objectives": objectives or LOSS}
    return StudyRecord.model_validate({**record, "trials": [trial.model_dump() for trial in trials]})


def shown(record: StudyRecord, is_terminal: bool = False) -> list[str]:
    console = Console(file=io.StringIO(), width=120, force_terminal=is_terminal, color_system=None)
    show_study(console, record, StudyFolder(Path("runs/s")))
    return console.file.getvalue().splitlines()  # type: ignore[attr-defined]


def test_lines_for_programs(capsys: pytest.CaptureFixture[str]) -> None:
    assert shown(study(*TRIALS)) == ["best: s-003; 2 finished, 1 pruned, 1 failed; 29 steps"]
    assert capsys.readouterr().out.splitlines() == [
        "trial\tstate\tsteps\tloss\ta.b",
        "3*\tfinished\t12\t1.5\tx",
        "0\tfinished\t12\t2\t1e-05",
        "1\tpruned\t4\t(3.25)\t[1, 2]",
        "2\tfailed: training step 2: the loss is nan\t1\t\tnull",
    ]


def test_a_table_for_people_ends_somewhere() -> None:
    many = [TRIALS[0].model_copy(update={"number": number}) for number in range(NUM_TRIALS_SHOWN + 2)]
    lines = shown(study(*many), is_terminal=True)
    assert lines[0].split() == ["trial", "state", "steps", "loss", "a.b"]
    assert len(lines) == NUM_TRIALS_SHOWN + 3
    assert lines[-2] == "and 2 more in runs/s/trials.csv"


def test_several_objectives_have_a_front(capsys: pytest.CaptureFixture[str]) -> None:
    both = [
        TRIALS[0].model_copy(update={"values": {"loss": 2.0, "acc": 0.5}}),
        TRIALS[3].model_copy(update={"values": {"loss": 1.5, "acc": 0.4}}),
    ]
    (line,) = shown(study(*both, loss="minimize", acc="maximize"))
    assert line.startswith("Pareto front: s-003, s-000; ")
    assert [row.split("\t")[0] for row in capsys.readouterr().out.splitlines()[1:]] == ["3*", "0*"]


def test_what_became_of_a_trial() -> None:
    lines = [trial_line(trial, study(*TRIALS)) for trial in TRIALS]
    assert lines == [
        "finished after 12 steps: loss 2",
        "was stopped at step 4, and goes on when the search does: loss 3.25",
        "failed: training step 2: the loss is nan",
        "finished after 12 steps: loss 1.5",
    ]
    paused = TRIALS[1].model_copy(update={"state": "paused"})
    assert trial_line(paused, study(paused)) == "was compared at step 4: loss 3.25"
