"""The trials that are left of a search become one job; what jobs have begun is taken up by the search."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from scaleup.artifacts.run_folder import RunFolder
from scaleup.config.load import dump
from scaleup.errors import ScaleupError
from scaleup.plan.describe import Described
from scaleup.studies.sampling import new_trials
from scaleup.studies.search_jobs import plan_search
from scaleup.studies.search_run import read_record
from tests.unit.launcher.plans import plan_of
from tests.unit.studies.folders import write_rows
from tests.unit.studies.test_search import search_of

CLUSTER = ("run.cluster={cpus_per_node: 1}", "run.parallel={num_processes: 1, strategy: single}")


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_rows(tmp_path)
    facts = plan_of(RunFolder(tmp_path)).model
    monkeypatch.setattr(
        "scaleup.studies.search_check.describe_models", lambda models, *_: Described(dict.fromkeys(models, facts))
    )
    return tmp_path


def raw_of(**keys: Any) -> dict[str, Any]:
    search = search_of(**keys)
    return {
        **search.config.model_dump(mode="json", exclude_none=True, exclude_defaults=True),
        "run": {"config": search.base},
    }


def begin(number: int, loss: float | None = None, **keys: Any) -> None:
    """Leave what a job leaves of a trial: begun, or finished with a loss."""
    search = search_of(*CLUSTER, **keys)
    trial = new_trials(search, search.new_record(), number + 1)[number]
    run, config = search.trial_run(number), search.load(trial.params, number).config
    assert config is not None
    run.path.mkdir(parents=True)
    run.config_file.write_text(dump(config))
    if loss is not None:
        run.metrics_file.write_text(json.dumps({"step": 6, "loss": loss}) + "\n")
        run.finish("sft", run.path.name, {}, 6)


@pytest.mark.parametrize("method", ["random", "grid"])
def test_what_is_left_is_one_job_and_what_was_begun_is_taken_up(method: str) -> None:
    keys: dict[str, Any] = {"method": method}
    if method == "grid":
        keys |= {"space": {"train.seed": {"choice": [0, 1, 2]}}, "num_trials": None}
    raw, count = raw_of(**keys), 3 if method == "grid" else 5
    job, target = plan_search(Path("s.yaml"), raw, CLUSTER, None, 2, None)
    assert (target, job.is_sweep, job.max_parallel, job.folder.name) == ("slurm", True, 2, "1")
    assert [config.name for config in job.configs] == [f"s-{number:03d}" for number in range(count)]
    assert not search_of(*CLUSTER, **keys).folder.path.exists(), "planning writes nothing"
    begin(1, 0.5, **keys)
    begin(2, **keys)
    record = read_record(search_of(*CLUSTER, **keys))
    assert [trial.state for trial in record.trials] == ["running", "finished", "running"]
    assert record.trials[1].values == {"loss": 0.5}
    left, _ = plan_search(Path("s.yaml"), raw, CLUSTER, None, None, None)
    assert [config.name for config in left.configs] == [config.name for config in job.configs if config.name != "s-001"]
    for number in (0, 2, 3, 4)[: count - 1]:
        run = search_of(*CLUSTER, **keys).trial_run(number)
        run.path.mkdir(parents=True, exist_ok=True)
        if not run.config_file.is_file():
            run.config_file.write_text(dump(job.configs[number]))
        run.metrics_file.write_text(json.dumps({"step": 6, "loss": 0.5}) + "\n")
        run.finish("sft", run.path.name, {}, 6)
    with pytest.raises(ScaleupError, match=r"^study: all its trials have ended"):
        plan_search(Path("s.yaml"), raw, CLUSTER, None, None, None)


def test_a_folder_of_another_run_is_refused() -> None:
    begin(0)
    with pytest.raises(ScaleupError, match=r"train\.max_steps changed: what its trials came to is not comparable"):
        read_record(search_of(*CLUSTER, "run.train.max_steps=9"))


def test_trials_that_need_unlike_nodes_are_no_array() -> None:
    space = {"parallel": {"choice": [{"strategy": "single"}, {"num_processes": 2, "num_nodes": 2}]}}
    raw = raw_of(method="grid", space=space, num_trials=None)
    with pytest.raises(ScaleupError, match=r"^space: its points need unlike nodes"):
        plan_search(Path("s.yaml"), raw, CLUSTER[:1], None, None, None)
