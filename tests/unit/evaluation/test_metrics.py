"""Scores of answers against references."""

import math

import pytest
from rouge_score.rouge_scorer import RougeScorer

from scaleup.evaluation.metrics import accuracy, exact_match, first_label, rouge, score_answers
from scaleup.train.metrics import perplexity

LABELS = ["bad", "good", "very good"]


@pytest.mark.parametrize(
    ("answer", "label"),
    [
        (" good", "good"),
        ("GOOD!", "good"),
        ("not bad, rather good", "bad"),
        ("very good", "very good"),
        ("It was very good, not just good.", "very good"),
        ("good, very good", "good"),
        ("goodness, a badger", None),
        ("so-good", "good"),
        ("it_good", None),
        ("", None),
    ],
)
def test_first_label(answer, label):
    assert first_label(answer, LABELS) == label
    assert first_label(answer, LABELS[::-1]) == label


def test_labels_are_words_and_not_patterns():
    assert first_label("xxx", ["..."]) is None
    assert first_label("C++ it is", ["c++", "c"]) == "c++"
    assert first_label("das war süß.", ["süß"]) == "süß"
    assert first_label("über", ["ber"]) is None


def test_accuracy():
    answers = ["I think it is good", "bad", "no idea", "very good"]
    scores = accuracy(answers, ["good", "good", "good", "very good"], LABELS)
    assert scores == {"accuracy": 0.5, "answers_without_label": 1}
    assert accuracy(["no idea"], ["neither"], LABELS)["accuracy"] == 0.0, "no label is never right"


def test_references_that_no_answer_can_match_are_counted():
    scores = score_answers(["accuracy"], ["good", "good", "bad"], ["good", "fine", "so so"], LABELS)
    assert scores == {"accuracy": pytest.approx(1 / 3), "answers_without_label": 0, "references_without_label": 2}


def test_answers_without_a_label_are_counted():
    scores = score_answers(["accuracy"], ["it is fine", "", "bad"], ["good", "bad", "bad"], LABELS)
    assert scores == {"accuracy": pytest.approx(1 / 3), "answers_without_label": 2}


def test_references_without_a_word_are_counted():
    scores = score_answers(["rouge"], ["?!", "yes", "..."], ["?!", "yes", "+"], None)
    assert scores["references_without_word"] == 2 and scores["rouge1"] == pytest.approx(100 / 3)
    assert scores["rouge_tokenizer"] == "default"
    assert "references_without_word" not in score_answers(["rouge"], ["yes"], ["no"], None)


def test_exact_match():
    assert exact_match([" Yes\n", "no", "yes!"], ["yes", "NO ", "yes"]) == pytest.approx(2 / 3)


def test_rouge_is_that_of_rouge_score():
    answers = ["the cats sat on a mat", "nothing in common", "", "police killed the gunman"]
    references = ["the cat sat on the mat", "other words entirely", "empty", "the gunman was killed by police"]
    scorer = RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=True)
    expected = [scorer.score(reference, answer) for answer, reference in zip(answers, references, strict=True)]
    scores = rouge(answers, references)
    assert scores.pop("rouge_tokenizer") == "default"
    assert scores.keys() == {"rouge1", "rouge2", "rougeL"}
    for kind, score in scores.items():
        assert score == pytest.approx(100 * sum(row[kind].fmeasure for row in expected) / 4)
    assert 0 < scores["rouge2"] < scores["rougeL"] < scores["rouge1"]


def test_rouge_in_numbers():
    """4 of 4 and of 6 words in common, none of the pairs, 2 in order: police ... killed or the gunman."""
    scores = rouge(["police killed the gunman"], ["the gunman was killed by police"])
    assert scores["rouge1"] == pytest.approx(100 * 2 * 4 / (4 + 6))
    assert scores["rouge2"] == pytest.approx(100 * 2 * 1 / (3 + 5))
    assert scores["rougeL"] == pytest.approx(100 * 2 * 2 / (4 + 6))
    assert set(rouge(["same words"], ["same words"]).values()) == {100.0, "default"}
    assert rouge(["running"], ["runs"])["rouge1"] == 100.0, "stemmed"


def test_perplexity():
    assert perplexity(0.0) == 1.0
    assert perplexity(math.log(32)) == pytest.approx(32)
    assert perplexity(5000.0) == math.inf
    assert math.isnan(perplexity(math.nan))


def test_only_what_was_asked_for():
    answers, references = ["good"], ["good"]
    assert score_answers(["perplexity"], answers, references, None) == {}
    assert score_answers(["exact_match"], answers, references, None) == {"exact_match": 1.0}
    scores = score_answers(["accuracy", "exact_match", "rouge", "perplexity"], answers, references, LABELS)
    rouges = {"rouge1", "rouge2", "rougeL", "rouge_tokenizer"}
    assert scores.keys() == {"accuracy", "answers_without_label", "exact_match", *rouges}


def test_a_call_of_a_tool_is_no_text_to_compare_with():
    """Silence would match it, and the same call would not."""
    metrics = ["accuracy", "exact_match", "rouge"]
    scores = score_answers(metrics, ["<call>", "", "good"], ["", "", "good"], LABELS)
    assert (scores["accuracy"], scores["exact_match"], scores["rouge1"]) == (1, 1, 100)
    assert scores["references_without_text"] == 2
    assert score_answers(metrics, ["<call>"], [""], LABELS) == {"references_without_text": 1}
