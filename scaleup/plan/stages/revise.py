"""This module plans revisions: a model criticises answers by principles and writes them again."""

from __future__ import annotations

from collections.abc import Iterator

from scaleup.config.schema import GenerationConfig
from scaleup.config.stages.revise import ReviseConfig
from scaleup.errors import Problem
from scaleup.plan.machine import Machine
from scaleup.plan.rules import one_answer, quantized_twice
from scaleup.plan.stages.base import Rows, StagePlanner
from scaleup.records.constitution import constitution_problems


class RevisePlanner(StagePlanner[ReviseConfig]):
    makes_model = False
    shows = "revise"

    def splits(self, config: ReviseConfig) -> dict[str, Rows]:
        return {"test": "prompts" if config.revise.responses == "generated" else "completions"}

    def answers(self, config: ReviseConfig) -> GenerationConfig | None:
        return config.generation

    def problems(self, config: ReviseConfig, machine: Machine) -> Iterator[Problem]:
        yield from super().problems(config, machine)
        yield from one_answer(config.generation, "generation", "one answer a prompt is revised")
        if config.generation.prompts is not None:
            yield Problem("generation.prompts", "are for the generate stage", "name their file at data.test")
        is_given = config.revise.responses == "data"
        if is_given and any(form.text is not None for form in self.row_formats(config)):
            what = "gives no prompt, and an answer to one is revised"
            yield Problem("data.text", what, "set data.prompt and data.completion instead")
        yield from constitution_problems(config.revise.constitution, "revise")

    def quantized_problems(self, config: ReviseConfig) -> Iterator[Problem]:
        yield from quantized_twice(config.model, config.quantization)


PLANNER = RevisePlanner()
