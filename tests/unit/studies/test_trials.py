"""What a trial came to is read from its folder: metrics by step, where it stopped, and its end."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from scaleup.artifacts.files import write_json
from scaleup.artifacts.study import Trial
from scaleup.config.load import dump
from scaleup.studies.search import Search
from scaleup.studies.shares import Slot
from scaleup.studies.trials import TrialProcess, is_refused, note_end, note_folder
from tests.unit.studies.test_search import search_of

ASHA: dict[str, Any] = {"method": "asha", "asha": {"min_steps": 2}, "objectives": {"eval_loss": "minimize"}}


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def begun(search: Search, eval_losses: Iterable[tuple[int, float]], **train: Any) -> Trial:
    """A trial whose folder holds these evaluations."""
    trial = Trial(number=0, params={f"train.{key}": value for key, value in train.items()})
    run, loaded = search.trial_run(0), search.load(trial.params, 0)
    assert loaded.config is not None
    run.path.mkdir(parents=True)
    run.config_file.write_text(dump(loaded.config))
    lines = [{"step": step, "eval_loss": loss} for step, loss in eval_losses]
    run.metrics_file.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 9, "eval_l')
    return trial


def test_a_trial_that_has_stopped_at_its_rung_waits_there() -> None:
    search = search_of(**ASHA)
    trial = begun(search, [(1, 3.0), (2, 2.0)])
    trial.stop_at_step = 2
    note_folder(search, trial)
    assert (trial.state, trial.rungs, trial.steps) == ("running", {2: 2.0}, 2), "killed before it had saved"
    write_json(search.trial_run(0).resumable_file, {"step": 2, "num_steps": 6})
    note_folder(search, trial)
    assert trial.state == "paused"


def test_a_trial_that_was_stopped_before_its_rung_goes_on_to_it() -> None:
    search = search_of(**ASHA)
    trial = begun(search, [(1, 3.0)])
    trial.stop_at_step = 2
    write_json(search.trial_run(0).resumable_file, {"step": 1, "num_steps": 6})
    note_folder(search, trial)
    assert (trial.state, trial.rungs, trial.steps) == ("running", {}, 1)


def test_the_value_of_a_finished_trial_is_that_of_the_weights_that_it_left() -> None:
    search = search_of(objectives={"eval_loss": "minimize"})
    for load_best, expected in ((False, 2.5), (True, 2.0)):
        trial = begun(search, [(2, 2.0), (4, 2.5)], load_best_model_at_end=load_best, eval_steps=2)
        run = search.trial_run(0)
        run.finish("sft", run.path.name, {"best_step": 2}, 4)
        note_folder(search, trial)
        assert (trial.state, trial.values, trial.steps) == ("finished", {"eval_loss": expected}, 4)
        run.path.rename(run.path.with_name(f"old-{load_best}"))


@pytest.mark.parametrize("losses", [[(2, float("nan"))], []])
def test_a_trial_without_a_number_at_its_end_has_failed(losses: list[tuple[int, float]]) -> None:
    search = search_of(objectives={"eval_loss": "minimize"})
    trial = begun(search, losses)
    search.trial_run(0).finish("sft", "s-000", {}, 2)
    note_folder(search, trial)
    assert (trial.state, trial.error) == ("failed", "eval_loss is no finite number at its end")


@pytest.mark.parametrize(
    ("code", "state", "error"),
    [(2, "failed", "training step 2: the loss is nan"), (75, "running", ""), (-9, "running", "")],
)
def test_how_its_command_ended_tells_whether_it_goes_on(code: int, state: str, error: str) -> None:
    search = search_of()
    trial = begun(search, [])
    log = search.folder.log_file(0)
    log.parent.mkdir(parents=True)
    log.write_text("error: of an earlier start\nreading data\nerror: training step 2: the loss is nan\n  logs: x\n")
    with subprocess.Popen(["true"]) as process:
        note_end(search, TrialProcess(trial, Slot((0,), None), process), code)
    assert (trial.state, trial.error) == (state, error)


def test_a_trial_without_a_number_at_its_rung_waits_there_too() -> None:
    """A figure may be null, e.g. a user's own: going on to the same rung again and again, the search would not end."""
    search = search_of(**ASHA)
    trial = begun(search, [(1, 3.0)])
    trial.stop_at_step = 2
    search.trial_run(0).metrics_file.write_text('{"step": 2, "eval_loss": null}\n')
    write_json(search.trial_run(0).resumable_file, {"step": 2, "num_steps": 6})
    with subprocess.Popen(["true"]) as process:
        note_end(search, TrialProcess(trial, Slot((0,), None), process), 75)
    assert (trial.state, trial.rungs) == ("paused", {2: None})


def test_values_that_make_no_config_are_not_run_without_them() -> None:
    good, bad = (Trial(number=0, params={"train.learning_rate": rate}) for rate in (1e-3, "much"))
    assert (is_refused(search_of(), good), good.state) == (False, "running")
    assert (is_refused(search_of(), bad), bad.state) == (True, "failed")
    assert bad.error.startswith("train.learning_rate: 'much' should be a valid number")
