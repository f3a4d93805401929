"""A search finds what it is to find, and one that is killed ends as one that was not: nothing is run twice."""

from __future__ import annotations

import csv
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.cli import alive, reached, scaleup, start, wait_until, worker_ids
from tests.small_runs import SFT, write_rows

RUN: dict[str, Any] = {
    **SFT,
    "data": {**SFT["data"], "validation_fraction": 0.2},
    "train": {**SFT["train"], "max_steps": 2},
    "parallel": {"num_processes": 1, "strategy": "single"},
}


def write_study(folder: Path, **keys: Any) -> Path:
    folder.mkdir(exist_ok=True)
    write_rows(folder)
    study = {"study": "lr", "run": {"config": RUN}, "objectives": {"eval_loss": "minimize"}, **keys}
    (folder / "study.yaml").write_text(yaml.safe_dump(study), encoding="utf-8")
    return folder


def study_of(place: Path) -> dict[str, Any]:
    read: dict[str, Any] = json.loads((place / "runs/lr/study.json").read_text())
    return read


def test_two_trials_side_by_side(tmp_path: Path) -> None:
    grid = {"train.learning_rate": {"choice": [1e-4, 1e-2]}}
    side_by_side = min(2, len(os.sched_getaffinity(0)))
    place = write_study(tmp_path, space=grid, method="grid", num_parallel=side_by_side)
    result = scaleup("search", "study.yaml", "--json", cwd=place)
    assert result.code == 0, result.stdout + result.stderr
    told = json.loads(result.stdout)
    assert told["best"] == [1], "100 times the learning rate learns more in two steps"
    assert [trial["params"]["train.learning_rate"] for trial in told["trials"]] == [1e-4, 1e-2]
    assert [(trial["state"], trial["steps"]) for trial in told["trials"]] == [("finished", 2)] * 2
    assert study_of(place)["is_complete"]
    rows = list(csv.DictReader((place / "runs/lr/trials.csv").open()))
    assert float(rows[1]["eval_loss"]) < float(rows[0]["eval_loss"])
    for number, row in enumerate(rows):
        manifest = json.loads((place / f"runs/lr-00{number}/manifest.json").read_text())
        assert manifest["metrics"]["eval_loss"] == pytest.approx(float(row["eval_loss"]))
    drawn = {file.name for file in (place / "runs/lr").glob("*.png")}
    assert drawn == {"optimization_history.png", "parallel_coordinate.png", "slice.png"}

    again = scaleup("search", "study.yaml", cwd=place)
    assert again.stdout.splitlines()[0] == "trial\tstate\tsteps\teval_loss\ttrain.learning_rate"
    assert again.stdout.splitlines()[1].startswith("1*\tfinished\t2\t")
    assert again.stdout.splitlines()[-1] == "search lr has finished already; nothing to do"
    assert len(list((place / "runs").glob("lr-*/attempts/*"))) == 2


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_asha_that_is_killed_and_stopped_trains_no_step_twice(tmp_path: Path) -> None:
    """Three learning rates to step 30, the best one on to step 90. The first is killed with its search on its way to
    the rung, and the last is stopped with it on its way to the end."""
    keys: dict[str, Any] = {
        "space": {"train.learning_rate": {"choice": [1e-4, 1e-2, 1e-3]}},
        "method": "asha",
        "asha": {"min_steps": 30, "reduction_factor": 3, "sampler": "grid"},
        "run": {"config": {**RUN, "train": {**RUN["train"], "max_steps": 90, "eval_steps": 30}}},
    }
    place = write_study(tmp_path, **keys)
    first, best = place / "runs/lr-000", place / "runs/lr-001"

    assert interrupted(place, signal.SIGKILL, first, 3) == -signal.SIGKILL
    wait_until(lambda: not alive(worker_ids(first)))
    assert [trial["state"] for trial in study_of(place)["trials"]] == ["running"]
    assert interrupted(place, signal.SIGTERM, best, 35) == 75
    states = {trial["number"]: trial["state"] for trial in study_of(place)["trials"]}
    assert states == {0: "paused", 1: "running", 2: "paused"}
    stopped_at = json.loads((best / "resumable.json").read_text())["step"]
    assert 35 <= stopped_at < 90, "it was to be stopped on its way"

    result = scaleup("search", "study.yaml", cwd=place)
    assert result.code == 0, result.stdout + result.stderr
    assert f"lr-001 goes on from step {stopped_at}" in result.stdout.splitlines()
    study = study_of(place)
    assert [(trial["state"], trial["steps"]) for trial in study["trials"]] == [
        ("pruned", 30),
        ("finished", 90),
        ("pruned", 30),
    ]
    for number, steps in ((0, 30), (1, 90), (2, 30)):
        assert trained(place / f"runs/lr-00{number}") == list(range(1, steps + 1)), f"trial {number}"


def trained(folder: Path) -> list[int]:
    """Every step that any attempt of a run has trained: TensorBoard's files are only ever added to."""
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    events = [event for file in folder.glob("tensorboard/**/events*") for event in EventFileLoader(str(file)).Load()]
    return sorted(event.step for event in events for value in event.summary.value if value.tag == "loss")


def interrupted(place: Path, number: signal.Signals, trial: Path, step: int) -> int:
    """Sends the search's own process a signal once a trial has come so far. Returns its exit code."""
    with start("search", "study.yaml", cwd=place) as process:
        wait_until(lambda: process.poll() is not None or reached(step)(trial), timeout=300, every=0.002)
        process.send_signal(number)
        process.communicate(timeout=300)
    return process.returncode
