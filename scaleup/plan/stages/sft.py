"""This module plans supervised fine-tuning."""

from __future__ import annotations

from collections.abc import Iterator

from scaleup.config.stages.sft import SFTConfig
from scaleup.errors import Problem
from scaleup.plan.compat import ADAPTERS, STRATEGIES, TESTED_PRECISIONS, Tested
from scaleup.plan.machine import Machine
from scaleup.plan.stages.base import Rows
from scaleup.plan.stages.supervised import SupervisedPlanner, no_classes, no_preferences


class SFTPlanner(SupervisedPlanner[SFTConfig]):
    tested = Tested(
        adapters=frozenset(ADAPTERS),
        precisions=TESTED_PRECISIONS,
        quantized=frozenset(STRATEGIES),
        quantized_precisions=TESTED_PRECISIONS,
    )

    adds_router_loss = True

    def splits(self, config: SFTConfig) -> dict[str, Rows]:
        return super().splits(config) | ({"retain": "completions"} if config.data.retain else {})

    def stage_problems(self, config: SFTConfig, machine: Machine) -> Iterator[Problem]:
        yield from no_preferences(config)
        yield from no_classes(config)


PLANNER = SFTPlanner()
