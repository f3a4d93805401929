"""This module plans generation: text from a model, for prompts of the config or those of data.test."""

from __future__ import annotations

from collections.abc import Iterator

from scaleup.config.evaluation import EvaluationConfig
from scaleup.config.schema import GenerationConfig
from scaleup.config.stages.generate import GenerateConfig
from scaleup.errors import Problem
from scaleup.plan.facts import InContext, RowsRequest
from scaleup.plan.machine import Machine
from scaleup.plan.rules import quantized_twice
from scaleup.plan.saved_adapters import side_by_side_problems
from scaleup.plan.stages.base import Rows, StagePlanner, example_splits, with_examples


class GeneratePlanner(StagePlanner[GenerateConfig]):
    makes_model = False
    shows = "generate"
    takes_few_shot = True

    def splits(self, config: GenerateConfig) -> dict[str, Rows]:
        asked: dict[str, Rows] = {} if config.generation.prompts else {"test": "prompts"}
        return asked | example_splits(config)

    def rows(self, config: GenerateConfig) -> RowsRequest | None:
        prompts, new = config.generation.prompts, config.generation.max_new_tokens
        asked = InContext(split=None if prompts else "test", prompts=prompts or [], max_new_tokens=new)
        return with_examples(super().rows(config), asked)

    def measured(self, config: GenerateConfig) -> EvaluationConfig | None:
        return None  # `evaluation` says how many rows it takes at a time, and nothing else

    def answers(self, config: GenerateConfig) -> GenerationConfig | None:
        return config.generation

    def problems(self, config: GenerateConfig, machine: Machine) -> Iterator[Problem]:
        yield from super().problems(config, machine)
        yield from side_by_side_problems(config.adapters, config.model)

    def quantized_problems(self, config: GenerateConfig) -> Iterator[Problem]:
        yield from quantized_twice(config.model, config.quantization)


PLANNER = GeneratePlanner()
