"""This module plans preferences by a judge model."""

from __future__ import annotations

from collections.abc import Iterator

from scaleup.config.data import RowFormat
from scaleup.config.stages.judge import JudgementConfig
from scaleup.errors import Problem
from scaleup.plan.facts import ModelFacts, RowsRequest
from scaleup.plan.machine import Machine
from scaleup.plan.rules import quantized_twice
from scaleup.plan.stages.base import Rows, StagePlanner
from scaleup.records.constitution import constitution_problems
from scaleup.records.format_rules import holds_preferences


class JudgePlanner(StagePlanner[JudgementConfig]):
    makes_model = False
    shows = "judge"

    def splits(self, config: JudgementConfig) -> dict[str, Rows]:
        return {"test": "completions"}

    def rows(self, config: JudgementConfig) -> RowsRequest | None:
        return None  # the judge reads questions about them, which no template of a conversation shapes

    def problems(self, config: JudgementConfig, machine: Machine) -> Iterator[Problem]:
        yield from super().problems(config, machine)
        if any(not holds_preferences(form) for form in self.row_formats(config)):
            what = "holds one answer a prompt, and two are compared"
            remedy = "name rows with completions, or with chosen and rejected"
            yield Problem("data.test", what, remedy)
        yield from constitution_problems(config.judge.constitution, "judge")

    def quantized_problems(self, config: JudgementConfig) -> Iterator[Problem]:
        yield from quantized_twice(config.model, config.quantization)

    def task_problems(
        self, config: JudgementConfig, facts: ModelFacts, where: str, forms: list[RowFormat]
    ) -> Iterator[Problem]:
        yield from super().task_problems(config, facts, where, forms)
        if config.judge.as_chat and facts.task == "seq2seq_lm":
            what = f"{where} is an encoder-decoder model, which reads no conversation"
            yield Problem("judge.as_chat", what, "leave it out")
        elif config.judge.as_chat and not (facts.has_chat_template or config.data.chat_template):
            what = f"{where}'s tokenizer has no chat template"
            yield Problem("judge.as_chat", what, "leave it out, or name one with data.chat_template")


PLANNER = JudgePlanner()
