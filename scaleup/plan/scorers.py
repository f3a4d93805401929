"""This module checks classifiers that score texts, a reward model or the one that measures toxicity: by the config, and
by the model's own files."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from scaleup.artifacts.classifier_files import REWARD_FILE, read_reward
from scaleup.config.evaluation import EvaluationConfig, PairwiseJudge
from scaleup.config.schema import ScorerConfig
from scaleup.errors import Problem, ScaleupError
from scaleup.plan.facts import ModelFacts
from scaleup.plan.machine import Machine
from scaleup.plan.model_path import model_path_problems, saved_settings
from scaleup.records.template import Template

FIELDS = ("prompt", "response")
PROMPT_LEARNING = frozenset({"PROMPT_TUNING", "PREFIX_TUNING", "P_TUNING", "MULTITASK_PROMPT_TUNING", "CPT"})
TOXICITY_MODEL, REWARD_MODEL = "evaluation.toxicity_model", "evaluation.reward_model"
JUDGE_MODEL = "evaluation.judge.model"
"""Are config keys, and what the facts of those models go by."""
LABELS = {TOXICITY_MODEL: "evaluation.toxic_label", REWARD_MODEL: "evaluation.reward_label"}
PROBABLE = "name a classifier of labels, or use score: logit where there is a choice"


def template_problems(text: str, where: str, known: tuple[str, ...] = FIELDS) -> Iterator[Problem]:
    """Yields why a template cannot show what is scored: all of its fields but the prompt are needed."""
    try:
        fields = Template(text).fields
    except ScaleupError as error:
        yield from (Problem(where, f"{item.where} {item.what}", item.remedy) for item in error.problems)
        return
    for field in fields:
        if field not in known:
            yield Problem(where, f"has no field {field!r}", f"write {' and '.join(f'{{{name}}}' for name in known)}")
    for field in (name for name in known if name != "prompt" and name not in fields):
        what = f"does not hold {{{field}}}: all responses would score the same"
        yield Problem(where, what, f"write {{{field}}} into it")


def reward_model_problems(scorer: ScorerConfig, facts: ModelFacts, where: str = "reward.model") -> list[Problem]:
    """Returns why a model cannot give the scores that `scorer` describes; `where` is the model's config key."""
    return list(_reward_model_problems(scorer, facts, where, where.rpartition(".")[0]))


def _reward_model_problems(scorer: ScorerConfig, facts: ModelFacts, where: str, section: str) -> Iterator[Problem]:
    if facts.task != "sequence_classification" or not (facts.labels or facts.adapter):
        what = f"({facts.architecture}) has no head that scores texts"
        yield Problem(f"{where}.path", what, "name a finished reward run, or a sequence classifier")
        return
    if facts.adapter and saved_settings(Path(facts.adapter)).get("peft_type") in PROMPT_LEARNING:
        what = "is a soft prompt or a prefix, which are not scored with"
        yield Problem(f"{where}.path", what, "name a whole model, or another adapter")
    labels = facts.classes or ("LABEL_0",)
    if scorer.label is not None and scorer.label not in labels:
        near = difflib.get_close_matches(scorer.label, labels, n=1, cutoff=0.5)
        remedy = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(labels)}"
        yield Problem(f"{section}.label", f"{scorer.label!r} is no label of {where}", remedy)
    if scorer.label is None and len(labels) > 1:
        what = f"is needed: {where} has {len(labels)} labels"
        yield Problem(f"{section}.label", what, f"name the one that is rewarded: {', '.join(labels)}")
    if facts.problem == "regression" and scorer.score == "probability":
        yield Problem(f"{where}.path", "gives numbers (regression), which are no probabilities", PROBABLE)
    if scorer.template is not None:
        yield from template_problems(scorer.template, f"{section}.template")
    if scorer.max_length and facts.max_positions and scorer.max_length > facts.max_positions:
        what = f"{scorer.max_length} tokens are more than the {facts.max_positions} that {where} has positions for"
        yield Problem(f"{section}.max_length", what, f"use at most {facts.max_positions}")
    try:
        saved = read_reward(Path(facts.adapter or facts.location))
    except ScaleupError as error:
        yield from error.problems
        return
    if saved is not None and scorer.normalize and scorer.score != saved.score:
        what = f"is {scorer.score}, and the mean and spread in {REWARD_FILE} are those of a {saved.score}"
        yield Problem(f"{section}.score", what, f"use {saved.score}, or set {section}.normalize: false")


def measured_by(evaluation: EvaluationConfig) -> dict[str, ScorerConfig]:
    """Returns the models that score answers, by config key."""
    scorers = {TOXICITY_MODEL: evaluation.toxicity_scorer, REWARD_MODEL: evaluation.reward_scorer}
    return {key: scorer for key, scorer in scorers.items() if scorer is not None}


def judge_problems(judge: PairwiseJudge, section: str) -> Iterator[Problem]:
    """Yields settings of a judge, in a section of the config, by which it cannot tell two responses apart."""
    yield from template_problems(judge.template, f"{section}.template", ("prompt", "first", "second"))
    if len({option.strip() for option in judge.options}) < 2:
        yield Problem(f"{section}.options", "are alike: nothing tells which response is meant", "e.g. [A, B]")


def judge_model_problems(judge: PairwiseJudge, facts: ModelFacts, where: str) -> Iterator[Problem]:
    """Yields why the model at a config key cannot judge."""
    if facts.task == "sequence_classification":
        what = f"is a sequence classifier ({facts.architecture}): a judge answers with one of two options"
        yield Problem(f"{where}.path", what, "name a language model, or measure reward by evaluation.reward_model")
    if facts.max_positions and judge.max_length and judge.max_length > facts.max_positions:
        what = f"{judge.max_length} tokens are more than the {facts.max_positions} that {where} has positions for"
        yield Problem(f"{where.rpartition('.')[0]}.max_length", what, f"use at most {facts.max_positions}")


def scorer_problems(evaluation: EvaluationConfig, machine: Machine) -> Iterator[Problem]:
    """Yields settings of models that score answers which a config leaves out."""
    for metric, model, key, what in (
        ("toxicity", evaluation.toxicity_model, TOXICITY_MODEL, "a sequence classifier"),
        ("reward", evaluation.reward_model, REWARD_MODEL, "a finished reward run, or a sequence classifier"),
        ("judge", None if evaluation.judge is None else evaluation.judge.model, JUDGE_MODEL, "a language model"),
    ):
        if metric not in evaluation.metrics:
            continue
        if model is None:
            yield Problem(key, f"is needed for {metric}", f"name {what}")
        else:
            yield from model_path_problems(model, key, not machine.is_described)
    if "toxicity" in evaluation.metrics and evaluation.toxic_label is None:
        yield Problem(LABELS[TOXICITY_MODEL], "is needed for toxicity", "name the classifier's label for it, e.g. hate")


def scorer_model_problems(evaluation: EvaluationConfig, facts: ModelFacts, where: str) -> list[Problem]:
    """Returns the problems that the files of the model at a key of `measured_by` tell."""
    problems = reward_model_problems(measured_by(evaluation)[where], facts, where)
    return [replace(each, where=LABELS[where]) if each.where == "evaluation.label" else each for each in problems]
