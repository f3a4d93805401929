"""What a reward model cannot be trained from, and what cannot give rewards."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from pathlib import Path

from scaleup.artifacts.reward_file import REWARD_FILE, read_reward
from scaleup.config.rl import RewardSource
from scaleup.config.schema import RunConfig
from scaleup.config.stages import DistillConfig, EvaluateConfig, ExportConfig, PruneConfig, RewardConfig, SFTConfig
from scaleup.errors import Problem, ScaleupError
from scaleup.plan.facts import ModelFacts
from scaleup.plan.machine import Machine
from scaleup.plan.model_path import saved_settings
from scaleup.records.examples import row_format
from scaleup.records.format_rules import PREFERENCE_KEYS, holds_preferences
from scaleup.records.template import Template

FIELDS = ("prompt", "response")
PROMPT_LEARNING = frozenset({"PROMPT_TUNING", "PREFIX_TUNING", "P_TUNING", "MULTITASK_PROMPT_TUNING", "CPT"})


def holds_labels(config: RunConfig, split: str) -> bool:
    """Whether a split's rows are texts with a class."""
    return any(row_format(config.data, source).label is not None for source in _sources(config, split))


def preference_problems(config: RunConfig, machine: Machine) -> Iterator[Problem]:
    """Rows of another kind than the stage learns from, and settings that say nothing of pairs."""
    forms = [row_format(config.data, source) for split in ("train", "validation") for source in _sources(config, split)]
    if isinstance(config, SFTConfig | DistillConfig) and any(map(holds_preferences, forms)):
        key = next(key for key in PREFERENCE_KEYS if any(getattr(form, key) is not None for form in forms))
        what = f"is of preferences, which stage {config.stage} does not learn from"
        yield Problem(f"data.{key}", what, "use stage: reward")
    if isinstance(config, SFTConfig | RewardConfig) and any(form.label is not None for form in forms):
        what = f"is of classifiers, which stage {config.stage} does not train"
        yield Problem("data.label", what, "use stage: distill, with a classifier as the teacher")
    if not isinstance(config, RewardConfig):
        return
    for key in ("completion", "template", "messages", "text"):
        if any(getattr(form, key) is not None for form in forms):
            what = "says nothing of which response is preferred"
            yield Problem(f"data.{key}", what, "give data.chosen and data.rejected, or data.completions with ranks")
    if config.model.task not in ("auto", "sequence_classification"):
        what = f"a reward model is a sequence classifier, not a {config.model.task} model"
        yield Problem("model.task", what, "leave it out: whatever the model is, it gets a head of one score")
    if config.data.packing:
        yield Problem("data.packing", "is of language models: each text has a score of its own", "leave it out")
    if any(form.completions is not None for form in forms):
        for name in ("streaming", "validation_fraction"):
            if getattr(config.data, name):
                whole = (
                    "streamed rows make one pair each" if name == "streaming" else "pairs of one row would be parted"
                )
                yield Problem(f"data.{name}", f"does not go with rankings: {whole}", "write pairs, or leave it out")
    yield from template_problems(config.reward.template, "reward.template")


def template_problems(text: str, where: str) -> Iterator[Problem]:
    try:
        fields = Template(text).fields
    except ScaleupError as error:
        yield from (Problem(where, f"{item.where} {item.what}", item.remedy) for item in error.problems)
        return
    for field in fields:
        if field not in FIELDS:
            yield Problem(where, f"has no field {field!r}", "write {prompt} and {response}")
    if "response" not in fields:
        yield Problem(where, "does not hold {response}: all responses would score the same", "write {response} into it")


def scored_problems(config: RunConfig, facts: ModelFacts, where: str) -> Iterator[Problem]:
    """What the model's own files tell of a stage that needs a sequence classifier, or cannot use one."""
    is_scored = facts.task == "sequence_classification"
    if isinstance(config, RewardConfig):
        if len(facts.labels) > 1:
            what = f"is a classifier of {len(facts.labels)} labels ({', '.join(facts.labels)}), a reward model has one"
            remedy = "name its base model; to reward one of these labels, no training is needed (ppo's reward.label)"
            yield Problem(f"{where}.path", what, remedy)
    elif isinstance(config, EvaluateConfig):
        yield from _evaluation_problems(config, facts, where)
    elif (
        is_scored and where == "model" and not isinstance(config, DistillConfig | ExportConfig | PruneConfig)
    ):  # which have own rules
        what = f"is a sequence classifier ({facts.architecture}): it scores texts and writes none"
        yield Problem(f"{where}.path", what, f"stage {config.stage} needs a language model; evaluate takes this one")


def _evaluation_problems(config: EvaluateConfig, facts: ModelFacts, where: str) -> Iterator[Problem]:
    forms = [row_format(config.data, source) for source in _sources(config, config.evaluation.split)]
    are_pairs = any(map(holds_preferences, forms))
    are_classes = holds_labels(config, config.evaluation.split)
    if facts.task != "sequence_classification":
        if are_classes:
            what = f"({facts.architecture}) is no classifier, and the rows are texts with a class"
            yield Problem(f"{where}.path", what, "name a classifier, or rows with a prompt and a completion")
        if are_pairs and config.evaluation.needs_completions:
            what = f"({facts.architecture}) scores no texts, and the rows are preferences"
            yield Problem(f"{where}.path", what, "name a reward model, or rows with a prompt and a completion")
        return
    if are_classes and len(facts.labels) < 2:
        yield Problem("data.label", f"{where} has one score and no classes", "give data.chosen and data.rejected")
    elif not are_pairs and not are_classes:
        what = f"{where} is a reward model, which is measured on preferences"
        yield Problem("data", what, "give data.chosen and data.rejected, or data.text and data.label for a classifier")
    if config.adapters:
        yield Problem("adapters", "of classifiers are not put side by side", "evaluate each by its own path")
    if config.evaluation.metrics != ["perplexity"]:
        what = f"{where} is a classifier, whose metrics follow from the rows: accuracy and the like"
        yield Problem("evaluation.metrics", what, "leave it out")
    if (are_pairs and len(facts.labels) > 1) or not (facts.labels or facts.adapter):
        found = f"{len(facts.labels)} labels" if facts.labels else "no head"
        yield Problem(f"{where}.path", f"has {found}, and one score is compared", "name a reward run")


def reward_model_problems(source: RewardSource, facts: ModelFacts, where: str = "reward.model") -> list[Problem]:
    """Why a model cannot give the rewards that `source` asks for; `where` is the model's config key."""
    return list(_reward_model_problems(source, facts, where, where.rpartition(".")[0]))


def _reward_model_problems(source: RewardSource, facts: ModelFacts, where: str, section: str) -> Iterator[Problem]:
    if facts.task != "sequence_classification" or not (facts.labels or facts.adapter):
        what = f"({facts.architecture}) has no head that scores texts"
        yield Problem(f"{where}.path", what, "name a finished reward run, or a sequence classifier")
        return
    if facts.adapter and saved_settings(Path(facts.adapter)).get("peft_type") in PROMPT_LEARNING:
        what = "is a soft prompt or a prefix, which are not scored with"
        yield Problem(f"{where}.path", what, "name a whole model, or another adapter")
    labels = facts.labels or ("LABEL_0",)
    if source.label is not None and source.label not in labels:
        near = difflib.get_close_matches(source.label, labels, n=1, cutoff=0.5)
        remedy = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(labels)}"
        yield Problem(f"{section}.label", f"{source.label!r} is no label of {where}", remedy)
    if source.label is None and len(labels) > 1:
        what = f"is needed: {where} has {len(labels)} labels"
        yield Problem(f"{section}.label", what, f"name the one that is rewarded: {', '.join(labels)}")
    if source.template is not None:
        yield from template_problems(source.template, f"{section}.template")
    if source.max_length and facts.max_positions and source.max_length > facts.max_positions:
        what = f"{source.max_length} tokens are more than the {facts.max_positions} that {where} has positions for"
        yield Problem(f"{section}.max_length", what, f"use at most {facts.max_positions}")
    try:
        saved = read_reward(Path(facts.adapter or facts.location))
    except ScaleupError as error:
        yield from error.problems
        return
    if saved is not None and source.normalize and source.score != saved.score:
        what = f"is {source.score}, and the mean and spread in {REWARD_FILE} are those of a {saved.score}"
        yield Problem(f"{section}.score", what, f"use {saved.score}, or set {section}.normalize: false")


def _sources(config: RunConfig, split: str):  # type: ignore[no-untyped-def]
    return getattr(config.data, split) or []
