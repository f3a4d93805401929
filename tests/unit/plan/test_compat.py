"""The one table: every refused cell is refused by the planner with its message, and the others are not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from scaleup.errors import ScaleupError
from scaleup.plan.compat import Cell, Verdict, table, verdict
from scaleup.plan.facts import ModelFacts
from scaleup.plan.stages import planner_named
from scaleup.plan.types import Plan

ADAPTERS: dict[str, dict[str, Any] | None] = {
    "full": None,
    "selective": {"type": "selective", "parameters": ["*"]},
    "lora": {"type": "lora"},
    "dora": {"type": "lora", "use_dora": True},
    "ia3": {"type": "ia3"},
    "adalora": {"type": "adalora", "tfinal": 1},
    "prompt_tuning": {"type": "prompt_tuning", "num_virtual_tokens": 4},
    "prefix": {"type": "prefix_tuning", "num_virtual_tokens": 4},
}
SFT = planner_named("sft").tested
CELLS = [(cell, found) for cell, found in table(SFT) if cell.precision == "no"]


def changes(cell: Cell) -> dict[str, Any]:
    count = 1 if cell.strategy == "single" else 2
    return {
        "parallel.strategy": cell.strategy,
        "parallel.num_processes": count,
        "quantization": cell.quantization,
        "adapter": ADAPTERS[cell.adapter],
        "mixed_precision": cell.precision,
    }


@pytest.mark.parametrize(("cell", "found"), CELLS, ids=lambda part: "-".join(map(str, vars(part).values()))[:40])
def test_the_planner_reads_the_table(plan: Callable[..., Plan], cell: Cell, found: Verdict) -> None:
    if found.status == "refused":
        with pytest.raises(ScaleupError) as caught:
            plan(changes(cell))
        [problem] = caught.value.problems
        assert (problem.where, problem.what, problem.remedy) == (found.where, found.reason, found.remedy)
        return
    notes = [note for note in plan(changes(cell)).notes if "docs/compatibility.md" in note]
    assert len(notes) == (found.status == "untested here")


def test_a_precision_is_refused_too(plan: Callable[..., Plan]) -> None:
    with pytest.raises(ScaleupError) as caught:
        plan({"adapter": ADAPTERS["adalora"], "mixed_precision": "fp16", "parallel.strategy": "single"}, num_gpus=1)
    assert [problem.where for problem in caught.value.problems] == ["mixed_precision"]
    assert verdict(Cell("ddp", None, "adalora", "bf16")).status != "refused"


def test_auto_passes_over_what_is_refused(plan: Callable[..., Plan]) -> None:
    found = plan(
        {"parallel.strategy": "auto", "parallel.num_processes": 2, "quantization": "8bit", "adapter": {"type": "lora"}},
        memory=2**40,
    )
    assert found.groups[0].strategy == "ddp"
    assert {held.strategy for held in found.memory} == {"ddp", "zero1", "zero2"}


REWARD = {
    "stage": "reward",
    "data.text": None,
    "data.chosen": "{text}",
    "data.rejected": "not {text}",
    "parallel.strategy": "zero2",
    "parallel.num_processes": 2,
}


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_a_reward_model_has_cells_of_its_own(plan: Callable[..., Plan], facts: ModelFacts, adapter: str) -> None:
    cell = Cell("zero2", None, adapter, "no", "reward")
    scored = facts.model_copy(update={"task": "sequence_classification", "pooling": "last"})
    if verdict(cell).status == "refused":
        with pytest.raises(ScaleupError) as caught:
            plan({**REWARD, "adapter": ADAPTERS[adapter]}, facts=scored)
        assert [problem.what for problem in caught.value.problems] == [verdict(cell).reason]
        return
    notes = [note for note in plan({**REWARD, "adapter": ADAPTERS[adapter]}, facts=scored).notes if "tests" in note]
    assert len(notes) == (adapter not in ("full", "lora"))


def test_what_a_reward_model_is_trained_with_is_tested() -> None:
    found = {cell: verdict.status for cell, verdict in table(planner_named("reward").tested, "reward")}
    assert {cell.adapter for cell, status in found.items() if status == "ok"} == {"full", "lora"}
    assert found[Cell("zero2", "8bit", "lora", "no", "reward")] == "ok"
    assert found[Cell("zero3", "8bit", "lora", "no", "reward")] == "refused"
    assert found[Cell("ddp", "8bit", "lora", "bf16", "reward")] == "untested here"


def test_every_cell_has_a_verdict() -> None:
    found = dict(table(SFT))
    assert len(found) == 6 * 3 * len(ADAPTERS) * 3
    assert verdict(Cell("zero2", "8bit", "full", "no")).status == "refused"
    assert all(v.reason and v.remedy and v.where for v in found.values() if v.status == "refused")
