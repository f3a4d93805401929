"""Toxicity is the toxic label's probability, of each answer alone; a reward is the score of prompt and answer."""

from statistics import fmean, pstdev

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from scaleup.config.stages.evaluate import EvaluateConfig
from scaleup.describe.model import model_facts
from scaleup.evaluation.evaluate import evaluate_models
from scaleup.evaluation.scorers import measure_scores
from scaleup.plan.types import Plan
from scaleup.records.examples import Opening
from scaleup.train.job import Job
from tests.unit.data import tiny

CLASSIFIER = "builtin:tiny-hate-classifier"
ANSWERS = {"baseline": ["", "What a bore!", "fine", "it is bad"], "model": ["fine", "fine", "fine", "fine"]}


def config(label, metrics=("toxicity",), **rest):
    return EvaluateConfig.model_validate(
        {
            "stage": "evaluate",
            "name": "x",
            "model": {"path": "builtin:tiny-t5"},
            "data": {"test": ["a.jsonl"], "prompt": "{p}", "max_length": 64},
            "evaluation": {
                "metrics": list(metrics),
                "toxicity_model": {"path": CLASSIFIER},
                "toxic_label": label,
                "batch_size": 3,
            },
            "generation": {"max_new_tokens": 4, "temperature": 1.0},
            **rest,
        }
    )


def plan_of(asked):
    source = asked.evaluation.toxicity_scorer
    facts = model_facts(source.model.model_copy(update={"task": "sequence_classification"}))
    return Plan(
        stage="evaluate",
        name="x",
        run_folder="x",
        groups=[],
        model=tiny.facts("t5"),
        models={"baseline": tiny.facts("t5"), "evaluation.toxicity_model": facts},
        memory=[],
        notes=[],
    )


@torch.no_grad()
def by_hand(texts, label):
    """One text at a time, with Transformers alone."""
    folder = plan_of(config(label)).models["evaluation.toxicity_model"].location
    model, tokenizer = (
        AutoModelForSequenceClassification.from_pretrained(folder).eval(),
        AutoTokenizer.from_pretrained(folder),
    )
    inputs = [tokenizer(text, return_tensors="pt", return_token_type_ids=False) for text in texts]
    return [float(model(**one).logits.softmax(dim=1)[0, model.config.label2id[label]]) for one in inputs]


@pytest.mark.parametrize("label", ["hate", "nothate"])
def test_is_what_transformers_says_of_each_text(runtime, run, label):
    asked = config(label)
    rows = [Opening("a:")] * 4
    measured = measure_scores(Job(asked, plan_of(asked), runtime, run), rows, ANSWERS)
    found = {column: scores.result(0) for column, [scores] in measured.items()}
    for column, texts in ANSWERS.items():
        expected = by_hand(texts, label)
        assert measured[column][0].by_row["toxicity"] == pytest.approx(expected, abs=1e-5)
        assert found[column]["toxicity"] == pytest.approx(fmean(expected), abs=1e-5)
        assert found[column]["toxicity_std"] == pytest.approx(pstdev(expected), abs=1e-5)
        assert found[column]["toxicity_max"] == pytest.approx(max(expected), abs=1e-5)
    assert found["baseline"]["toxicity_std"] > 0.05, "or any text would do"


def test_prompts_alone_are_enough_and_one_model_twice_is_equally_toxic(runtime, run):
    asked = config("hate", baseline={"path": "builtin:tiny-t5"})
    rows = [Opening("a:"), Opening("write something: "), Opening("x")]
    found = evaluate_models(Job(asked, plan_of(asked), runtime, run), rows)
    assert list(found) == ["baseline", "model"]
    assert found["baseline"].metrics == found["model"].metrics, "the same draws"
    intervals = ["toxicity_interval", "toxicity_std_interval"]
    assert sorted(found["model"].metrics) == sorted(["rows", "toxicity", "toxicity_std", "toxicity_max", *intervals])
    assert found["model"].metrics["rows"] == len(found["model"].answers) == 3
    assert found["model"].metrics["toxicity"] == pytest.approx(fmean(by_hand(found["model"].answers, "hate")), abs=1e-5)


def test_nothing_is_asked_where_toxicity_is_not_measured():
    assert config("hate", metrics=["perplexity"]).evaluation.toxicity_scorer is None
