"""The planner of the toy stage."""

from __future__ import annotations

from collections.abc import Iterator

from scaleup.config.stages.toy import ToyConfig

from scaleup.errors import Problem
from scaleup.plan.machine import Machine
from scaleup.plan.stages.supervised import SupervisedPlanner, no_classes, no_preferences


class ToyPlanner(SupervisedPlanner[ToyConfig]):
    def stage_problems(self, config: ToyConfig, machine: Machine) -> Iterator[Problem]:
        yield from no_preferences(config)
        yield from no_classes(config)
        if config.mixed_precision == "bf16":
            yield Problem("mixed_precision", "bf16 is not supported with smoothed labels", 'use "no"')


PLANNER = ToyPlanner()
