"""Metrics of Hugging Face's library `evaluate`, and functions of a user's own file."""

import numpy as np
import pytest

from scaleup.errors import ScaleupError
from scaleup.evaluation import answer_metrics
from scaleup.evaluation.foreign import Answered, foreign_scores
from scaleup.evaluation.metrics import score_answers

ANSWERED = Answered(["p", "q", "r", "s"], ["a cat", "b", "", "a"], ["a", "b", "c", "a"])
FUNCTIONS = """
def words(predictions, references, prompts):
    return [float(len(text.split())) for text in predictions]

def share(predictions, **_):
    return {"empty": predictions.count("") / len(predictions), "words": [len(text.split()) for text in predictions]}

def by_prompt(prompts, **_):
    return [prompt == "p" for prompt in prompts]

def nothing(**_):
    return "good"

def short(**_):
    return [1.0]

def broken(**_):
    raise ValueError("no such thing")
"""


@pytest.fixture
def file(tmp_path):
    (tmp_path / "own.py").write_text(FUNCTIONS)
    return tmp_path / "own.py"


def test_a_function_that_tells_something_of_each_row(file):
    [scores, by_prompt], figures = foreign_scores([f"{file}:words", "rouge", f"{file}:by_prompt"], ANSWERED, 10)
    assert scores.result(0) == {"words": 1.0} and list(scores.by_row["words"]) == [2, 1, 0, 1]
    assert by_prompt.result(0) == {"by_prompt": 0.25} and figures == {}


def test_a_function_that_tells_something_of_all_rows(file):
    """Its interval is that of as many calls on samples of the rows."""
    [words], figures = foreign_scores([f"{file}:share"], ANSWERED, 1000)
    assert words.result(0) == {"words": 1.0} and figures["empty"] == 0.25
    low, high = figures["empty_interval"]
    assert low == 0.0 and 0.5 <= high <= 0.75
    assert foreign_scores([f"{file}:share"], ANSWERED, 0)[1] == {"empty": 0.25}


def test_a_metric_of_the_library_by_its_path(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_EVALUATE_CACHE", str(tmp_path))
    scores, figures = foreign_scores([f"evaluate:{answer_metrics.__file__}#exact_match"], ANSWERED, 20)
    assert scores == [] and figures["exact_match"] == 0.5 and len(figures["exact_match_interval"]) == 2
    [own] = score_answers(["exact_match"], ANSWERED.answers, ANSWERED.references, None)
    assert figures["exact_match_interval"] == pytest.approx(own.result(20)["exact_match_interval"])


@pytest.mark.parametrize(
    ("metric", "words"),
    [
        ("own.py:broken", "raised ValueError: no such thing"),
        ("own.py:nothing", "returned neither a number nor one for each of 4 answers"),
        ("own.py:short", "returned neither a number nor one for each of 4 answers"),
        ("own.py:missing", "cannot be loaded: AttributeError"),
        ("evaluate:own.py", "cannot be loaded"),
    ],
)
def test_what_fails_is_named(file, monkeypatch, metric, words):
    monkeypatch.chdir(file.parent)
    with pytest.raises(ScaleupError, match=words) as caught:
        foreign_scores([metric], ANSWERED, 0)
    assert [problem.where for problem in caught.value.problems] == ["evaluation.metrics"]
    with pytest.raises(ScaleupError, match=words) as caught:
        foreign_scores([metric], ANSWERED, 0, "train.eval_metrics")
    assert [problem.where for problem in caught.value.problems] == ["train.eval_metrics"]


def test_truth_values_are_numbers(file):
    [scores], _ = foreign_scores([f"{file}:by_prompt"], ANSWERED, 0)
    assert scores.by_row["by_prompt"].dtype == np.float64
