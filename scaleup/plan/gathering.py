"""A rank's memory under a strategy that shards weights goes in; whether they are gathered once a rollout comes out, and
why (parallel.gather_for_generation)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from scaleup.config.run import RunConfig
from scaleup.config.schema import ParallelConfig
from scaleup.errors import Problem
from scaleup.plan.strategy import RankBudget, gibibytes
from scaleup.plan.types import MemoryPlan

KEY = "parallel.gather_for_generation"


def gathering_problems(parallel: ParallelConfig, generates: bool, stage: str) -> Iterator[Problem]:
    """Yields a wish to gather where there is nothing to gather. `generates`: the stage does while it trains."""
    wish = parallel.gather_for_generation
    if wish == "auto":
        return
    if not generates:
        yield Problem(KEY, f"stage {stage} generates nothing from sharded weights", "leave it out")
    elif wish and parallel.strategy in ("single", "ddp", "zero1", "zero2"):
        what = f"{parallel.strategy} keeps the weights whole on every rank, so there is nothing to gather"
        yield Problem(KEY, what, "leave it out, or use zero3 or fsdp2")


def with_gathering(config: RunConfig, held: MemoryPlan, budget: RankBudget) -> MemoryPlan:
    """Returns the memory without the gathered weights, where they stay sharded in rollouts."""
    wish = config.parallel.gather_for_generation
    gathers = budget.fits(held) if wish == "auto" else wish
    return held if gathers else held.model_copy(update={"gathered": 0})


def generation_settings(config: RunConfig, whole: MemoryPlan | None, budget: RankBudget) -> dict[str, Any]:
    """Returns the settings of a group that follow for its rollouts. `whole` is the memory of its strategy with the
    gathered weights; None, or with none, where there is nothing to gather."""
    if whole is None or not whole.gathered:
        return {}
    gathers = with_gathering(config, whole, budget).gathered > 0
    way = "weights gathered once a rollout" if gathers else "weights gathered layer by layer for every token"
    if config.parallel.gather_for_generation != "auto":
        why = f"{KEY} says so"
    elif budget.memory is None:
        why = "the memory of a rank is not known"
    else:
        with_all = f"a whole copy with all else takes {gibibytes(budget.needs(whole))}"
        why = f"{with_all} of a rank's {gibibytes(budget.memory)}" + ("" if gathers else ", which leaves too little")
    return {"gathers_for_generation": gathers, "generation": f"{way}: {why}"}
