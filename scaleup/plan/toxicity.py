"""The classifier that measures the toxicity of answers, and why it cannot."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from scaleup.config.rl import RewardSource
from scaleup.config.schema import EvaluationConfig, RunConfig
from scaleup.config.stages import GenerateConfig
from scaleup.errors import Problem
from scaleup.plan.facts import ModelFacts
from scaleup.plan.machine import Machine
from scaleup.plan.model_path import model_path_problems
from scaleup.plan.reward import reward_model_problems

TOXICITY_MODEL = "evaluation.toxicity_model"
"""The config key, and what the facts of that model go by."""
TOXIC_LABEL = "evaluation.toxic_label"


def toxicity_source(config: RunConfig) -> RewardSource | None:
    """What is asked about each answer, which is read alone: the probability of the toxic label. None where toxicity is
    not measured."""
    evaluation = _measured(config)
    if evaluation is None:
        return None
    return RewardSource(
        placement="colocated",
        model=evaluation.toxicity_model,
        label=evaluation.toxic_label,
        score="probability",
        template="{response}",
        normalize=False,
        batch_size=evaluation.batch_size,
    )


def toxicity_problems(config: RunConfig, machine: Machine) -> Iterator[Problem]:
    """What a config leaves out."""
    evaluation = _measured(config)
    if evaluation is None:
        return
    if evaluation.toxicity_model is None:
        yield Problem(TOXICITY_MODEL, "is needed for toxicity", "name a sequence classifier")
    else:
        yield from model_path_problems(evaluation.toxicity_model, TOXICITY_MODEL, not machine.is_described)
    if evaluation.toxic_label is None:
        yield Problem(TOXIC_LABEL, "is needed for toxicity", "name the classifier's label for it, e.g. hate")


def toxicity_model_problems(config: RunConfig, facts: ModelFacts) -> list[Problem]:
    """What the classifier's own files tell."""
    source = toxicity_source(config)
    assert source is not None, "else nobody asked about it"
    found = reward_model_problems(source, facts, TOXICITY_MODEL)
    return [replace(each, where=TOXIC_LABEL) if each.where == "evaluation.label" else each for each in found]


def _measured(config: RunConfig) -> EvaluationConfig | None:
    evaluation: EvaluationConfig | None = getattr(config, "evaluation", None)
    if evaluation is None or isinstance(config, GenerateConfig) or "toxicity" not in evaluation.metrics:
        return None
    return evaluation
