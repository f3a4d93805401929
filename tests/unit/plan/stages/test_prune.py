"""Rows and models of different kinds, by name."""

from __future__ import annotations

from typing import Any

import pytest

from scaleup.config.data import DataConfig, RowFormat
from scaleup.config.stages.prune import PruneConfig
from scaleup.plan.facts import ModelFacts, Parts
from scaleup.plan.stages.prune import row_kind_problems, size_problems

LABELLED, PLAIN = RowFormat(text="{text}", label="kind"), RowFormat(text="{text}")


def config(packing: bool = False, **prune: Any) -> PruneConfig:
    raw = {"stage": "prune", "name": "x", "model": {"path": "a"}, "data": DataConfig(packing=packing).model_dump()}
    return PruneConfig.model_validate({**raw, "prune": {"layers": 1, **prune}})


@pytest.fixture
def classifier(facts: ModelFacts) -> ModelFacts:
    update = {"task": "sequence_classification", "architecture": "BertForSequenceClassification"}
    return facts.model_copy(update={**update, "labels": ("bad", "good"), "model_type": "bert"})


def problems(facts: ModelFacts, *forms: RowFormat, packing: bool = False) -> list[str]:
    return [str(each) for each in row_kind_problems(config(packing), facts, forms)]


def test_what_goes_together(facts: ModelFacts, classifier: ModelFacts) -> None:
    assert problems(facts, PLAIN) == problems(classifier, LABELLED) == problems(classifier) == []
    assert problems(facts, PLAIN, packing=True) == []


def test_rows_without_a_class_and_a_classifier(classifier: ModelFacts) -> None:
    assert problems(classifier, LABELLED, PLAIN) == [
        "data: says nothing of a text's class, and model is a classifier -> give data.text and data.label"
    ]


def test_rows_with_a_class_and_a_language_model(facts: ModelFacts) -> None:
    [found] = problems(facts, PLAIN, LABELLED)
    assert found.startswith(f"model.path: ({facts.architecture}) is no classifier, and the rows are texts with a class")


@pytest.mark.parametrize(("labels", "has"), [(("LABEL_0",), "one score"), ((), "no head")])
def test_a_head_of_no_classes(classifier: ModelFacts, labels: tuple[str, ...], has: str) -> None:
    [found] = problems(classifier.model_copy(update={"labels": labels}), LABELLED)
    assert found.startswith(f"model.path: (BertForSequenceClassification) has {has} and no classes")


def test_packing_joins_texts_of_several_classes(classifier: ModelFacts) -> None:
    [problem] = problems(classifier, LABELLED, packing=True)
    assert problem == "data.packing: not supported for classifiers -> remove it"


def test_sparsegpt_would_reach_the_head(classifier: ModelFacts) -> None:
    parts = Parts(depths=(2,), intermediate_size=128, num_key_value_heads=4, head_dim=16, fixed={})
    facts = classifier.model_copy(update={"parts": parts})
    sparse: dict[str, Any] = {"sparsity": 0.5, "pattern": "2:4"}
    assert size_problems(config(**sparse), facts) == []
    [found] = size_problems(config(**sparse, sparsity_score="sparsegpt"), facts)
    assert str(found).startswith("prune.sparsity_score: nvidia-modelopt would make zeros in a classifier's head")
