"""What rows and settings say of a classifier's head, and which classifiers other stages take."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from scaleup.config.load import load_mapping
from scaleup.config.stages.classify import ClassifyConfig
from scaleup.config.stages.distill import DistillConfig
from scaleup.config.stages.prune import PruneConfig
from scaleup.plan.facts import ModelFacts
from scaleup.plan.stages import planner_named
from scaleup.plan.stages.classify import wanted_head
from scaleup.plan.stages.distill import pair_problems
from scaleup.records.check import check_data

TEXTS = {"text": "{text}", "label": "label"}


def config_of(labels: list[Any], folder: Path, **keys: Any) -> ClassifyConfig:
    rows = [json.dumps({"text": str(n), "label": label}) for n, label in enumerate(labels)]
    (folder / "rows.jsonl").write_text("\n".join(rows), encoding="utf-8")
    raw = {
        "stage": "classify",
        "name": "x",
        "model": {"path": "builtin:tiny-bert"},
        "data": {"root": str(folder), "train": "rows.jsonl", **TEXTS},
        "train": {"max_steps": 2},
        **keys,
    }
    config = load_mapping(raw).config
    assert isinstance(config, ClassifyConfig)
    return config


@pytest.mark.parametrize(
    ("labels", "settings", "head"),
    [
        (["b", "a", "b"], {}, ("single_label", ("a", "b"))),
        ([3, 1, 10], {}, ("single_label", ("1", "3", "10"))),
        ([3, 1.5], {}, ("regression", ("LABEL_0",))),
        ([3, 1], {"problem": "regression"}, ("regression", ("LABEL_0",))),
        ([[3, 1], [2, 0]], {"problem": "regression"}, ("regression", ("LABEL_0", "LABEL_1"))),
        ([["b"], ["a", "b"], []], {}, ("multi_label", ("a", "b"))),
        (["b", "a"], {"labels": ["b", "a", "c"]}, ("single_label", ("b", "a", "c"))),
    ],
)
def test_rows_name_the_labels_of_a_new_head(labels: list[Any], settings: Any, head: Any, tmp_path: Path) -> None:
    config = config_of(labels, tmp_path, classify=settings)
    assert wanted_head(config, check_data(config.data, ["train"])) == head


def test_rows_that_are_not_all_read_name_none(tmp_path: Path) -> None:
    config = config_of(["a", "b"], tmp_path, data={"train": "owner/dataset", **TEXTS})
    assert wanted_head(config, check_data(config.data, ["train"])) == (None, ())


@pytest.fixture
def classifier(facts: ModelFacts) -> ModelFacts:
    update = {"task": "sequence_classification", "labels": ("a", "b"), "problem": "multi_label"}
    return facts.model_copy(update=update)


def test_several_labels_are_no_probabilities_to_teach(classifier: ModelFacts, tmp_path: Path) -> None:
    raw = {"stage": "distill", "name": "x", "model": {"path": "a"}, "teacher": {"path": "b"}, "train": {"max_steps": 1}}
    config = load_mapping({**raw, "data": {"train": "rows.jsonl", **TEXTS}}).config
    assert isinstance(config, DistillConfig)
    [problem] = pair_problems(config, classifier, classifier)
    assert str(problem).startswith("teacher.path: is a classifier of multi_label, and the probabilities of classes are")
    single = classifier.model_copy(update={"problem": "single_label"})
    assert list(pair_problems(config, single, single)) == []


def test_a_pruned_classifier_of_several_labels_is_not_recovered_by_probabilities(classifier: ModelFacts) -> None:
    raw = {"stage": "prune", "name": "x", "model": {"path": "a"}, "data": {"train": "rows.jsonl", **TEXTS}}
    planner = planner_named("prune")
    for recovery in (None, {"train": {"max_steps": 1}}):
        config = load_mapping({**raw, "prune": {"layers": 1}, "recovery": recovery}).config
        assert isinstance(config, PruneConfig)
        found = [str(each) for each in planner.model_problems(config, {"model": classifier})]
        assert [each.partition(":")[0] for each in found] == (["recovery"] if recovery else [])
