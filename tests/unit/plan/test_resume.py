"""Which configs may go on with what a run folder holds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from scaleup.artifacts.run_folder import MAY_CHANGE_ON_RESUME, RunFolder
from scaleup.config.load import dump, load_mapping
from scaleup.config.stages import STAGES
from scaleup.errors import ScaleupError
from scaleup.plan.resume import SPLIT_KEYS, STRATEGY_KEYS, rows_of, state_of
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


STRATEGIES = ["single", "ddp", "zero1", "zero2", "zero3", "fsdp2"]


@pytest.mark.parametrize("strategy", STRATEGIES[1:])
def test_the_same_rows_a_step_on_other_processes(plan: Callable[..., Plan], strategy: str) -> None:
    own = {"parallel.strategy": strategy}
    assert state(plan, {**TWO, **own}, {**FOUR, **own}) == "unfinished"


@pytest.mark.parametrize("before", STRATEGIES)
@pytest.mark.parametrize("after", STRATEGIES)
def test_another_strategy(plan: Callable[..., Plan], before: str, after: str) -> None:
    one, other = ({"parallel.strategy": strategy} for strategy in (before, after))
    assert state(plan, one, other) == "unfinished"


def test_offload_comes_and_goes(plan: Callable[..., Plan]) -> None:
    zero3 = {"parallel.strategy": "zero3"}
    offloaded = {**zero3, "parallel.offload_optimizer": True, "parallel.offload_parameters": True}
    assert state(plan, zero3, offloaded) == "unfinished"
    assert state(plan, {**offloaded, "name": "y"}, {**zero3, "name": "y"}) == "unfinished"


def test_other_rows_a_step_are_another_run(plan: Callable[..., Plan]) -> None:
    with pytest.raises(ScaleupError, match=r"train.global_batch_size: a step of .* is 8 rows, and would be 16"):
        state(plan, TWO, {**TWO, "parallel.num_processes": 4})


@pytest.mark.parametrize(
    "key",
    ["train.learning_rate=0.5", "train.optimizer=sgd", "mixed_precision=bf16", "train.seed=5", "data.packing=true"],
)
def test_what_moves_the_trajectory_is_another_run(plan: Callable[..., Plan], key: str) -> None:
    """Also under another strategy."""
    name, _, value = key.partition("=")
    changes = {name: yaml.safe_load(value), "parallel.strategy": "zero2"}
    with pytest.raises(ScaleupError, match=f"holds another run, which differs in .*{name}"):
        state(plan, {"parallel.strategy": "ddp"}, changes)


def test_a_chat_template_is_known_by_its_text(folder: Path) -> None:
    """It may lie elsewhere, and not read otherwise."""
    for name in ("a", "b"):
        (folder / f"{name}.jinja").write_text("{{ messages }}")
    one, moved = (
        load_mapping(differing(RAW, {"data.chat_template": str(folder / f"{name}.jinja")})).config for name in "ab"
    )
    assert one is not None and moved is not None
    run = RunFolder(folder / "run")
    run.path.mkdir()
    run.config_file.write_text(dump(one), encoding="utf-8")
    began, _ = rows_of(run, one, "absent", False, print)
    began.save(run.data_file)
    assert state_of(run, moved, None) == "unfinished"
    assert rows_of(run, moved, "unfinished", False, print)[0].accepted == ()
    (folder / "a.jinja").write_text("{{ messages|length }}")
    with pytest.raises(ScaleupError, match=r"data.chat_template: '.*a.jinja' has changed since the run began"):
        rows_of(run, one, "unfinished", False, print)
    accepted, [told, _] = rows_of(run, one, "unfinished", True, print)
    assert accepted.accepted == (told,)


def test_the_guide_lists_what_may_change() -> None:
    guide = (Path(__file__).parents[3] / "docs/guide.md").read_text(encoding="utf-8")
    free = MAY_CHANGE_ON_RESUME | SPLIT_KEYS | STRATEGY_KEYS
    free |= frozenset().union(*(stage.free_on_resume for stage in STAGES.values()))
    assert [key for key in sorted(free) if f"`{key}`" not in guide] == []
