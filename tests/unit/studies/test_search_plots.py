"""Optuna's plots are drawn of a record, of each kind of search, also of trials that failed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from scaleup.artifacts.study import Trial
from scaleup.studies.sampling import next_params
from scaleup.studies.search_plots import plot
from tests.unit.studies.test_search import search_of

EACH = ("optimization_history", "parallel_coordinate", "slice")


@pytest.mark.parametrize(
    ("keys", "names"),
    [
        (
            {"method": "asha", "asha": {"min_steps": 2}},
            {*(f"{kind}.png" for kind in EACH), "intermediate_values.png"},
        ),
        (
            {"objectives": {"eval/scores": "maximize", "loss": "minimize"}},
            {*(f"{kind}-{name}.png" for kind in EACH for name in ("eval-scores", "loss")), "pareto_front.png"},
        ),
    ],
)
def test_plots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keys: dict[str, Any], names: set[str]) -> None:
    monkeypatch.chdir(tmp_path)
    search = search_of(**keys)
    record = search.new_record()
    assert plot(search, record) == []
    search.folder.path.mkdir(parents=True)
    for number, state in enumerate(("finished", "failed", "pruned", "finished")):
        values = dict.fromkeys(record.objectives, number + 0.5) if state == "finished" else {}
        params = dict(next_params(search, record.trials))
        trial = Trial.model_validate({"number": number, "params": params, "state": state, "values": values})
        record.trials.append(trial.model_copy(update={"rungs": {2: 1.0 + number} if "asha" in keys else {}}))
    assert set(plot(search, record)) == names == {file.name for file in search.folder.path.glob("*")}
    assert all((search.folder.path / name).read_bytes().startswith(b"\x89PNG") for name in names)
