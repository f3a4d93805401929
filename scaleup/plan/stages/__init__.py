"""This package finds the planners of the stages by name: `plan/stages/NAME.py` holds the planner of the stage NAME."""

from __future__ import annotations

from functools import cache
from importlib import import_module
from typing import Any

from scaleup.config.run import RunConfig
from scaleup.plan.stages.base import StagePlanner


def planner_of(config: RunConfig) -> StagePlanner[Any]:
    """Returns the planner of a config's stage."""
    return planner_named(config.stage)


@cache
def planner_named(stage: str) -> StagePlanner[Any]:
    """Imports the stage's module and returns its `PLANNER`."""
    planner: StagePlanner[Any] = import_module(f"scaleup.plan.stages.{stage}").PLANNER
    return planner
