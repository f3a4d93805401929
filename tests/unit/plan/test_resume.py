"""Which configs may go on with what a run folder holds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from scaleup.artifacts.run_folder import RunFolder
from scaleup.config.load import dump, load_mapping
from scaleup.errors import ScaleupError
from scaleup.plan.resume import state_of
from scaleup.plan.types import Plan
from tests.cli import differing
from tests.unit.plan.conftest import RAW

TWO = {"parallel.num_processes": 2, "train.per_device_train_batch_size": 4}
FOUR = {"parallel.num_processes": 4, "train.per_device_train_batch_size": 2}


def state(plan: Callable[..., Plan], before: dict[str, Any], after: dict[str, Any]) -> str:
    """Of the folder of an unfinished run of `before`, for `after`."""
    written, wanted = plan(before), plan(after)
    configs = [load_mapping(differing(RAW, changes)).config for changes in (before, after)]
    assert configs[0] is not None and configs[1] is not None
    run = RunFolder(Path(written.run_folder))
    run.path.mkdir(parents=True)
    run.config_file.write_text(dump(configs[0]), encoding="utf-8")
    written.save(run.plan_file)
    return state_of(run, configs[1], wanted.batch)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_the_same_rows_a_step_on_other_processes(plan: Callable[..., Plan], strategy: str) -> None:
    own = {"parallel.strategy": strategy}
    assert state(plan, {**TWO, **own}, {**FOUR, **own}) == "unfinished"


def test_other_rows_a_step_are_another_run(plan: Callable[..., Plan]) -> None:
    with pytest.raises(ScaleupError, match=r"another run, which differs in parallel.num_processes"):
        state(plan, TWO, {**TWO, "parallel.num_processes": 4})


def test_zero_stays_on_its_number_of_processes(plan: Callable[..., Plan]) -> None:
    zero = {"parallel.strategy": "zero2"}
    assert state(plan, {**TWO, **zero}, {**TWO, **zero}) == "unfinished"
    with pytest.raises(ScaleupError, match=r"differs in parallel.num_processes, train.per_device_train_batch_size"):
        state(plan, {**TWO, **zero, "name": "y"}, {**FOUR, **zero, "name": "y"})


def test_another_strategy_is_another_run(plan: Callable[..., Plan]) -> None:
    with pytest.raises(ScaleupError, match=r"differs in parallel.strategy"):
        state(plan, {**TWO, "parallel.strategy": "fsdp2"}, {**TWO, "parallel.strategy": "ddp"})
