"""This module plans reward models: what they cannot be trained from is refused."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from scaleup.config.data import RowFormat
from scaleup.config.schema import ModelConfig
from scaleup.config.stages.reward import RewardConfig
from scaleup.errors import Problem
from scaleup.plan.batches import packing_problems
from scaleup.plan.compat import TESTED_PRECISIONS, Tested
from scaleup.plan.compute import Workload
from scaleup.plan.facts import MicroBatch, ModelFacts, ModelRequest, RowsRequest
from scaleup.plan.machine import Machine
from scaleup.plan.memory import micro_batch_of
from scaleup.plan.rules import packing_unsupported
from scaleup.plan.scorers import template_problems
from scaleup.plan.stages.supervised import SupervisedPlanner, no_classes, only_preferences, ranking_problems
from scaleup.plan.twins import learning_rate


class RewardPlanner(SupervisedPlanner[RewardConfig]):
    tested = Tested(
        adapters=frozenset({"full", "lora"}),
        precisions=TESTED_PRECISIONS,
        quantized=frozenset({"single", "ddp", "zero2"}),
        kind="a reward model of ",
    )
    takes_classifiers = True
    writes_text = False
    work = Workload(texts_a_row=2)

    def stage_problems(self, config: RewardConfig, machine: Machine) -> Iterator[Problem]:
        yield from no_classes(config)
        forms = self.row_formats(config)
        yield from only_preferences(config, forms)
        if config.model.task not in ("auto", "sequence_classification"):
            what = f"a reward model is a sequence classifier, not a {config.model.task} model"
            yield Problem("model.task", what, "leave it out: whatever the model is, it gets a head of one score")
        if config.data.packing:
            yield packing_unsupported("reward models")
        yield from ranking_problems(config, forms)
        yield from template_problems(config.reward.template, "reward.template")

    def models(self, config: RewardConfig) -> dict[str, ModelRequest]:
        models = super().models(config)
        return models | {"model": models["model"].model_copy(update={"task": "sequence_classification"})}

    def rows(self, config: RewardConfig) -> RowsRequest | None:
        rows = super().rows(config)
        return rows and rows.model_copy(update={"pairs_template": config.reward.template})

    def micro_batch(self, config: RewardConfig) -> MicroBatch | None:
        return micro_batch_of(config).model_copy(update={"pairs": True})

    def task_problems(
        self, config: RewardConfig, facts: ModelFacts, where: str, forms: list[RowFormat]
    ) -> Iterator[Problem]:
        yield from packing_problems(config, facts)
        if len(facts.classes) > 1:
            what = (
                f"is a classifier of {len(facts.classes)} labels ({', '.join(facts.classes)}), a reward model has one"
            )
            remedy = "name its base model; to reward one of these labels, no training is needed (ppo's reward.label)"
            yield Problem(f"{where}.path", what, remedy)

    def twin(self, config: RewardConfig) -> dict[str, Any] | None:
        return {"train.learning_rate": 10 * learning_rate(config.adapter)}  # scores of random weights hardly differ

    def before(self, config: RewardConfig) -> ModelConfig | None:
        return None  # the model that it came from has no score


PLANNER = RewardPlanner()
