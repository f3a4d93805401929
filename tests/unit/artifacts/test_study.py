"""The record of a search: what is best, the table, and what a killed process may have left."""

from __future__ import annotations

from pathlib import Path

import pytest

from scaleup.artifacts.study import StudyFolder, StudyRecord, Trial
from scaleup.errors import ScaleupError


def finished(number: int, **values: float) -> Trial:
    return Trial(number=number, params={"a.b": number}, state="finished", steps=4, values=dict(values))


def record(*trials: Trial, **objectives: str) -> StudyRecord:
    return StudyRecord.model_validate(
        {"study": "s", "definition": {}, "objectives": objectives, "trials": [trial.model_dump() for trial in trials]}
    )


def test_the_best_is_the_one_that_is_asked_for() -> None:
    trials = [finished(0, acc=0.1), finished(1, acc=0.3), finished(2, acc=0.2)]
    assert [trial.number for trial in record(*trials, acc="maximize").best] == [1]
    assert [trial.number for trial in record(*trials, acc="minimize").ranked] == [0, 2, 1]


def test_the_pareto_front_holds_what_nothing_is_better_than() -> None:
    trials = [finished(0, loss=1, size=9), finished(1, loss=2, size=3), finished(2, loss=3, size=4)]
    trials += [finished(3, loss=1, size=9), Trial(number=4, params={"a.b": 4})]
    front = record(*trials, loss="minimize", size="minimize").best
    assert sorted(trial.number for trial in front) == [0, 1, 3], "2 is worse than 1 in both; equals stay"


def test_unfinished_trials_come_after_by_how_far_they_came() -> None:
    early = Trial(number=0, params={"a.b": 0}, state="pruned", steps=4, rungs={4: 0.1})
    late = Trial(number=1, params={"a.b": 1}, state="pruned", steps=12, rungs={4: 0.5, 12: 0.4})
    nan = Trial(number=2, params={"a.b": 2}, state="pruned", steps=12, rungs={12: None})
    failed = Trial(number=3, params={"a.b": 3}, state="failed", error="why")
    study = record(early, failed, nan, late, finished(4, loss=9), loss="minimize")
    assert [trial.number for trial in study.ranked] == [4, 1, 2, 0, 3]


def test_it_is_read_as_it_was_written_and_the_table_beside_it(tmp_path: Path) -> None:
    folder = StudyFolder(tmp_path / "s")
    assert folder.read() is None
    pruned = Trial(number=1, params={"a.b": {"r": 1}}, state="pruned", steps=4, rungs={4: 2.5})
    study = record(finished(0, loss=1.25), pruned, loss="minimize")
    folder.write(study)
    assert folder.read() == study
    assert folder.table_file.read_text().splitlines() == [
        "trial,state,steps,loss,a.b",
        "0,finished,4,1.25,0",
        '1,pruned,4,2.5,"{""r"": 1}"',
    ]
    folder.study_file.write_text('{"study": ')
    with pytest.raises(ScaleupError, match="cannot be read"):
        folder.read()
