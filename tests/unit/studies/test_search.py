"""A search's file becomes trials, each an ordinary config; mistakes in it are told together."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from scaleup.artifacts.study import Trial
from scaleup.config.load import load_leniently
from scaleup.errors import ScaleupError
from scaleup.studies.sampling import next_params
from scaleup.studies.search import Search, read_search, refuse_another
from scaleup.studies.search_run import read_record
from tests.unit.studies.folders import SFT

SPACE: dict[str, Any] = {
    "train.learning_rate": {"float": [1e-4, 1e-2], "log": True},
    "adapter": {"choice": [None, {"type": "lora", "r": 4}]},
    "train.per_device_train_batch_size": {"int": [2, 9], "step": 2},
}


def search_of(*overrides: str, **keys: Any) -> Search:
    raw: Mapping[str, Any] = {
        "study": "s",
        "run": {"config": SFT},
        "space": SPACE,
        "method": "random",
        "num_trials": 5,
        "objectives": {"loss": "minimize"},
        **keys,
    }
    return read_search(Path("s.yaml"), json.loads(json.dumps(raw)), overrides)


def grid(**keys: Any) -> Search:
    space = {"train.seed": {"choice": [0, 1]}, "train.max_steps": {"int": [4, 6]}}
    return search_of(method="grid", space=space, num_trials=None, **keys)


def test_a_grid_goes_through_its_last_key_fastest() -> None:
    search = grid()
    assert search.problems == [] and search.num_trials == 6
    points = [tuple(next_params(search, [Trial(number=0, params={})] * number).values()) for number in range(6)]
    assert points == [(0, 4), (0, 5), (0, 6), (1, 4), (1, 5), (1, 6)]


def test_a_trial_is_a_run_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    loaded = grid().load({"train.seed": 1, "train.max_steps": 5}, 12, stop_at_step=3)
    assert loaded.problems == [] and loaded.config is not None
    config: Any = loaded.config
    assert (config.name, config.runs_dir) == ("s-012", str(tmp_path / "runs"))
    assert (config.train.seed, config.train.max_steps, config.train.stop_at_step) == (1, 5, 3)


def test_overrides_are_of_the_search_or_of_its_run() -> None:
    changes = ["num_trials=7", "run.train.max_steps=9", "space.train.learning_rate={float: [1.0e-3, 1.0e-2]}"]
    search = search_of(*changes)
    assert search.problems == []
    assert (search.num_trials, search.base["train"]["max_steps"]) == (7, 9)
    assert search.config.space["train.learning_rate"].float == (1e-3, 1e-2)


@pytest.mark.parametrize("method", ["random", "tpe"])
def test_draws_lie_in_the_space_and_do_not_depend_on_interruptions(method: str) -> None:
    search = search_of(method=method)
    trials: list[Trial] = []
    for number in range(14):
        params = dict(next_params(search, trials))
        assert dict(next_params(search_of(method=method), list(trials))) == params, "started again here"
        assert 1e-4 <= params["train.learning_rate"] <= 1e-2
        assert params["adapter"] in (None, {"type": "lora", "r": 4})
        assert params["train.per_device_train_batch_size"] in (2, 4, 6, 8)
        state = "finished" if number % 3 else "failed"
        values = {"loss": params["train.learning_rate"]} if number % 3 else {}
        trials.append(Trial(number=number, params=params, state=state, values=values))
    assert len({trial.params["train.learning_rate"] for trial in trials}) == 14
    other = search_of(method=method, seed=1)
    assert next_params(other, []) != next_params(search, [])
    dated = search_of(method=method, seed=20240101)
    assert next_params(dated, []) != next_params(search, []), "a seed may be larger than numpy's"


def test_tpe_goes_where_it_was_good() -> None:
    search = search_of(method="tpe", num_trials=60, space={"train.learning_rate": {"float": [0, 1]}})
    trials: list[Trial] = []
    for number in range(40):
        (value,) = next_params(search, trials).values()
        loss = {"loss": (value - 0.7) ** 2}
        trials.append(Trial(number=number, params={"train.learning_rate": value}, state="finished", values=loss))
    late = [abs(trial.params["train.learning_rate"] - 0.7) for trial in trials[20:]]
    assert sum(late) / len(late) < 0.12, "a uniform draw is 0.29 away"


def test_every_mistake_of_the_file_is_told() -> None:
    space = {**SPACE, "adapter.r": {"int": [2, 1]}, "name": {"choice": ["a"]}, "train.seed": {"int": [1, 9], "lg": 1}}
    search = search_of("x.y", method="asha", space=space, num_trials=None, num_paralel=2, objectives={"loss": "min"})
    told = [str(problem) for problem in search.problems]
    for part in (
        "x.y: is not an override",
        "space.adapter.r: ",
        "space.name: is the same for all trials",
        "space.train.seed.lg: unknown key -> did you mean 'log'?",
        "num_paralel: unknown key -> did you mean 'num_parallel'?",
        "objectives.loss: 'min' is not valid -> did you mean 'minimize'?",
        "asha: is missing",
        "num_trials: is missing",
    ):
        assert any(line.startswith(part) for line in told), (part, told)
    assert len(told) == 8, told


@pytest.mark.parametrize(
    ("keys", "what"),
    [
        ({"method": "grid"}, "space.train.learning_rate: is a range, of which a grid needs points"),
        ({"method": "grid", "space": {"train.seed": {"int": [1, 4]}}}, "num_trials: is 5, and the grid has 4 points"),
        ({"asha": {"min_steps": 2}}, "asha: has no meaning for method: random"),
        ({"method": "asha", "asha": {"min_steps": 2}, "objectives": {"a": "minimize", "b": "minimize"}}, "objectives"),
        ({"space": {}}, "space: names no key"),
        ({"objectives": {}}, "objectives: names no metric"),
        ({"run": {"config": SFT, "overides": {}}}, "run.overides: is no key of a run"),
        ({"space": {"train.seed": {"float": [0, 1], "points": 3}}}, "space.train.seed.points: is for a grid"),
    ],
)
def test_what_contradicts_itself(keys: dict[str, Any], what: str) -> None:
    assert any(str(problem).startswith(what) for problem in search_of(**keys).problems)


def test_a_folder_of_another_search_is_refused() -> None:
    record = search_of().new_record()
    refuse_another(search_of(num_parallel=2), record)
    refuse_another(search_of("num_trials=9"), record)
    with pytest.raises(ScaleupError, match=r"holds another search, which differs in run\.train\.max_steps, seed"):
        refuse_another(search_of("run.train.max_steps=9", "seed=3"), record)
    record.trials = [Trial(number=number, params={}) for number in range(5)]
    with pytest.raises(ScaleupError, match="num_trials: is 4, and 5 trials are there"):
        refuse_another(search_of("num_trials=4"), record)


def test_a_file_in_the_place_of_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs/s").write_text("")
    with pytest.raises(ScaleupError, match="exists and is no search"):
        read_record(search_of())


def test_a_search_is_no_run(tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text("study: s\nrun: {config: x.yaml}\n")
    (problem,) = load_leniently(tmp_path / "s.yaml").problems
    assert problem.remedy == "run it with scaleup search FILE"
