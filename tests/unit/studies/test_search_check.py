"""What does not fit side by side is refused, and each trial is planned for its share."""

from __future__ import annotations

from typing import Any

import pytest

from scaleup.plan.machine import Machine
from scaleup.studies.search_check import machine_problems, points_of
from tests.unit.studies.test_search import SPACE, grid, search_of

GPUS = Machine(num_cores=16, num_gpus=4, memory=64, gpu_memory=80)


@pytest.mark.parametrize(
    ("machine", "count", "changes", "what"),
    [
        (Machine(num_cores=4, num_gpus=0), 4, (), []),
        (Machine(num_cores=4, num_gpus=0), 5, (), ["num_parallel: is 5, and there are 4 cores here"]),
        (GPUS, 4, (), []),
        (GPUS, 5, (), ["num_parallel: is 5, and there are 4 GPUs here"]),
        (GPUS, 16, ("run.parallel.device=cpu",), []),
        (GPUS, 4, ("run.parallel=3",), []),
    ],
)
def test_more_trials_than_devices(machine: Machine, count: int, changes: tuple[str, ...], what: list[str]) -> None:
    problems = machine_problems(search_of(*changes, num_parallel=count), machine)
    assert [str(problem).partition(" ->")[0] for problem in problems] == what


def test_a_small_grid_is_checked_whole_and_other_spaces_at_their_ends() -> None:
    assert len(list(points_of(grid()))) == 6
    points: list[Any] = list(points_of(search_of()))
    for key, ends in (("train.learning_rate", (1e-4, 1e-2)), ("train.per_device_train_batch_size", (2, 9))):
        assert {point[key] for point in points} == set(ends)
    assert {"type": "lora", "r": 4} in [point["adapter"] for point in points]
    assert all(point.keys() == SPACE.keys() for point in points)
    assert len(points) == 5, "all first ones, each other end, all last ones"


@pytest.mark.timeout(20)
def test_points_of_a_grid_that_is_refused_for_its_size_are_not_made() -> None:
    space = {f"train.{key}": {"int": [1, 9999]} for key in ("seed", "max_steps", "save_steps")}
    search = search_of(method="grid", space=space, num_trials=None)
    assert [problem.where for problem in search.problems] == ["space"]
    assert len(list(points_of(search))) == 5
