"""Spaces say which values a key may have, and mistakes in them are refused in words."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from scaleup.config.search import AshaConfig, Space, ends, grid_values, key_problems


def space(**keys: Any) -> Space:
    return Space.model_validate(keys)


@pytest.mark.parametrize(
    ("keys", "values"),
    [
        ({"choice": ["a", None, {"r": 4}]}, ["a", None, {"r": 4}]),
        ({"int": [1, 4]}, [1, 2, 3, 4]),
        ({"int": [2, 9], "step": 3}, [2, 5, 8]),
        ({"int": [4, 64], "log": True, "points": 5}, [4, 8, 16, 32, 64]),
        ({"float": [0, 1], "step": 0.25}, [0, 0.25, 0.5, 0.75, 1]),
        ({"float": [1e-5, 1e-2], "log": True, "points": 4}, [1e-5, 1e-4, 1e-3, 1e-2]),
        ({"float": [0, 1], "points": 1}, [0]),
        ({"float": [0, 1]}, None),
        ({"int": [1, 9], "log": True}, None),
    ],
)
def test_the_values_of_a_grid(keys: dict[str, Any], values: list[Any] | None) -> None:
    found = grid_values(space(**keys))
    assert (found if found is None else list(found)) == values


@pytest.mark.parametrize(
    ("keys", "what"),
    [
        ({}, "one of choice, float and int"),
        ({"float": [0, 1], "int": [0, 1]}, "one of choice, float and int"),
        ({"float": [1, 0]}, "begin below its end"),
        ({"float": [0, 1], "log": True}, "begin above 0"),
        ({"float": [1, 2], "log": True, "step": 0.5}, "either step or log"),
        ({"int": [1, 4], "step": 0.5}, "a whole step"),
        ({"choice": [1, 2], "step": 1}, "no step"),
        ({"choice": [1, 1]}, "list 1 once"),
        ({"choice": []}, "at least 1"),
        ({"float": [0, float("inf")]}, "finite"),
    ],
)
def test_what_is_no_space(keys: dict[str, Any], what: str) -> None:
    with pytest.raises(ValidationError, match=what):
        space(**keys)


def test_the_ends_of_a_space() -> None:
    assert ends(space(choice=[3, 1, 2])) == [3, 1, 2]
    assert ends(space(int=[4, 64], log=True)) == [4, 64]


def test_rungs_lie_before_the_end() -> None:
    asha = AshaConfig(min_steps=5, reduction_factor=3, sampler="random")
    assert asha.rungs(45) == [5, 15]
    assert asha.rungs(46) == [5, 15, 45]
    assert asha.rungs(5) == []


def test_keys_that_are_no_trials_own() -> None:
    refused = dict(key_problems(["train.learning_rate", "name", "cluster.slurm", "adapter", "adapter.r"]))
    assert set(refused) == {"name", "cluster.slurm", "adapter.r"}
    assert "space.adapter" in refused["adapter.r"]
