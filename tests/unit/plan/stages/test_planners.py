"""The planners of the stages: each is found by name, and nobody else asks which stage a config is."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import scaleup
from scaleup.config.stages import STAGES
from scaleup.plan.stages import planner_named, planner_of
from scaleup.plan.stages.base import StagePlanner
from scaleup.reports.results import TABLES

PACKAGE = Path(scaleup.__file__).parent
GENERIC = ["plan/resolve.py", "plan/rules.py", "plan/compat.py", "plan/groups.py", "plan/derive.py", "config/load.py"]
ROOMS = ("launcher", "artifacts")
GENERIC += [str(file.relative_to(PACKAGE)) for room in ROOMS for file in PACKAGE.glob(f"{room}/**/*.py")]


@pytest.mark.parametrize("stage", STAGES)
def test_each_stage_has_a_planner(stage: str) -> None:
    planner = planner_named(stage)
    assert isinstance(planner, StagePlanner)
    assert planner.shows in TABLES, "else nothing could be printed in the end"


@pytest.mark.parametrize("mode", ["offline", "sequence"])
def test_a_teacher_reads_prompts_where_it_writes(mode: str) -> None:
    """By its own template. Otherwise it gets the student's tokens."""
    data = {"train": "rows.jsonl", "validation": "held.jsonl", "messages": "messages"}
    path = {"path": "builtin:tiny-llama"}
    raw = {"stage": "distill", "name": "x", "model": path, "teacher": path, "data": data, "train": {"max_steps": 1}}
    config = STAGES["distill"].model_validate({**raw, "distill": {"mode": mode}})
    readers = planner_of(config).readers(config)
    train = "prompts" if mode == "sequence" else "completions"
    assert (readers["model"].splits, readers["model"].by_own_template) == (
        {"train": train, "validation": "completions"},
        False,
    )
    assert ("teacher" in readers) is (mode == "sequence")
    if mode == "sequence":
        assert (readers["teacher"].splits, readers["teacher"].by_own_template) == ({"train": "prompts"}, True)


@pytest.mark.parametrize("file", GENERIC)
def test_nobody_else_asks_which_stage_a_config_is(file: str) -> None:
    tree = ast.parse((PACKAGE / file).read_text(encoding="utf-8"))
    asked = [ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Call) and _asks_for_a_stage(node)]
    assert asked == []
    named = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)} & STAGES.keys() - {"reward"}
    assert named <= ALLOWED.get(file, set()), f"{named} stand here by name"


ALLOWED = {
    "plan/compat.py": {"sft", "reward", "classify", "dpo", "ppo", "rl", "distill", "evaluate", "generate", "export"},
    "plan/derive.py": {"evaluate", "generate", "export"},
}
"""The table of combinations has a column for stages; three stages are made of finished runs. (A process group is called
reward, too.)"""


def _asks_for_a_stage(call: ast.Call) -> bool:
    """Whether it is isinstance(config, ...Config), of whatever holds a config."""
    if not isinstance(call.func, ast.Name) or call.func.id != "isinstance":
        return False
    return any(name in ast.unparse(call.args[0]) for name in ("config", "learner", "loaded"))
