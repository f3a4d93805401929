"""Which configs may go on with what a run folder holds."""

from __future__ import annotations

import shutil
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


PPO = {
    "stage": "ppo",
    "name": "x",
    "model": {"path": "policy"},
    "adapter": {"type": "lora", "path": "adapter"},
    "reward": {"model": {"path": "reward"}},
    "ppo": {"num_rollouts": 1},
    "data": {"prompt": "{text}", "train": "rows.jsonl"},
}
SCORED = {**PPO, "reward": {"function": "score.py:score"}}
DISTILL = {**RAW, "stage": "distill", "model": {"path": "policy"}, "teacher": {"path": "reward"}}


@pytest.mark.parametrize(
    ("raw", "key", "file"),
    [
        (PPO, "model.path", "policy/model.safetensors"),
        (PPO, "adapter.path", "adapter/adapter_config.json"),
        (PPO, "reward.model.path", "reward/config.json"),
        (SCORED, "reward.function", "score.py"),
        (DISTILL, "teacher.path", "reward/config.json"),
    ],
)
def test_what_was_replaced_where_it_lies_is_refused(folder: Path, raw: dict[str, Any], key: str, file: str) -> None:
    """A model or a function is known by what it holds, as rows are."""
    for name in ("policy/model.safetensors", "adapter/adapter_config.json", "reward/config.json", "score.py"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("{}")
    config = load_mapping(raw).config
    assert config is not None
    run = RunFolder(folder / "run")
    run.path.mkdir()
    rows_of(run, config, "absent", False, print)[0].save(run.data_file)
    assert rows_of(run, config, "unfinished", False, print)[1] == []
    (folder / file).write_text('{"another": 1}')
    with pytest.raises(ScaleupError) as refused:
        rows_of(run, config, "unfinished", False, print)
    [problem] = refused.value.problems
    changed = "score" if key == "reward.function" else Path(file).name
    assert problem.where == key
    assert problem.what.endswith(f"' has changed since the run began: other contents of {changed}")
    remedy = "put the old files back, choose another name, or go on with these: --resume --accept-changed-data"
    assert problem.remedy == remedy
    accepted, [told, further] = rows_of(run, config, "unfinished", True, print)
    assert accepted.accepted == (told,) and told == f"{key}: {problem.what}"
    assert further.startswith("what has changed was accepted: the trajectory is another one")
    accepted.save(run.data_file)
    assert rows_of(run, config, "unfinished", False, print)[1] == [], "that is the run's model now"


def test_a_split_that_the_stage_does_not_read_may_change(plan: Callable[..., Plan], folder: Path) -> None:
    """Neither by the run's config nor by the new one."""
    (folder / "more.jsonl").write_text('{"text": "b"}\n')
    more = str(folder / "more.jsonl")
    for before, after in ((None, more), (more, None), (more, [more, more]), (more, str(folder / "rows.jsonl"))):
        changes = [{"data.test": value} if value else {} for value in (before, after)]
        assert state(plan, *changes) == "unfinished"
        shutil.rmtree(folder / "runs", ignore_errors=True)
    with pytest.raises(ScaleupError, match=r"holds another run, which differs in data\.validation"):
        state(plan, {"data.validation": more}, {})


def test_the_guide_lists_what_may_change() -> None:
    guide = (Path(__file__).parents[3] / "docs/guide.md").read_text(encoding="utf-8")
    free = MAY_CHANGE_ON_RESUME | SPLIT_KEYS | STRATEGY_KEYS
    free |= frozenset().union(*(stage.free_on_resume for stage in STAGES.values()))
    assert [key for key in sorted(free) if f"`{key}`" not in guide] == []
