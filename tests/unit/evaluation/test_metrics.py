"""Scores of answers against references."""

import math
import random

import evaluate
import numpy as np
import pytest
import sacrebleu
from nltk.translate.meteor_score import single_meteor_score
from rouge_score.rouge_scorer import RougeScorer

from scaleup.evaluation import answer_metrics
from scaleup.evaluation.metrics import first_label, named_labels, perplexity_scores, placed, score_answers
from scaleup.evaluation.scores import Scores, means, resampled, sample_counts
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


WORDS = [
    "the",
    "cat",
    "cats",
    "sat",
    "on",
    "a",
    "mat",
    "runs",
    "running",
    "police",
    "killed",
    "gunman",
    "was",
    "by",
    "under",
    "and",
    "then",
]
DRAWN = random.Random(0)
PAIRS = [[" ".join(DRAWN.choices(WORDS, k=DRAWN.randint(0, 12))) for _ in range(2)] for _ in range(40)]
ANSWERS, REFERENCES = [pair[0] for pair in PAIRS], [pair[1] or "police" for pair in PAIRS]


def scored(metrics, answers, references, labels=None, num_samples=0):
    """Returns all figures of metrics, and what they tell of each row."""
    scores = score_answers(metrics, answers, references, labels)
    figures = {name: value for each in scores for name, value in each.result(num_samples).items()}
    return figures, {name: list(values) for each in scores for name, values in each.by_row.items()}


def figures_of(metric, answers, references, labels=None):
    return scored([metric], answers, references, labels)[0]


def test_accuracy():
    answers = ["I think it is good", "bad", "no idea", "very good"]
    figures, rows = scored(["accuracy"], answers, ["good", "good", "good", "very good"], LABELS)
    assert figures == {"accuracy": 0.5, "answers_without_label": 1} and rows == {"accuracy": [1, 0, 0, 1]}
    assert figures_of("accuracy", ["no idea"], ["neither"], LABELS)["accuracy"] == 0.0, "no label is never right"


def test_f1():
    """Of bad 1 hit of 1 answer and 2 references; of good 2 hits, 3 answers, 2 references; one answer has no label."""
    answers = ["bad", "good", "good", "good", "no idea"]
    references = ["bad", "bad", "good", "good", "very good"]
    figures = figures_of("f1", answers, references, LABELS)
    assert figures["f1_macro"] == pytest.approx((2 * 1 / 3 + 2 * 2 / 5 + 0) / 3)
    assert figures["f1_micro"] == pytest.approx(2 * 3 / (4 + 5))
    assert figures_of("f1", ["bad"], ["bad"], LABELS) == {"f1_macro": 1, "f1_micro": 1}, "labels that nobody names"


def test_references_that_no_answer_can_match_are_counted():
    figures = figures_of("accuracy", ["good", "good", "bad"], ["good", "fine", "so so"], LABELS)
    assert figures == {"accuracy": pytest.approx(1 / 3), "answers_without_label": 0, "references_without_label": 2}


def test_answers_without_a_label_are_counted():
    figures = figures_of("accuracy", ["it is fine", "", "bad"], ["good", "bad", "bad"], LABELS)
    assert figures == {"accuracy": pytest.approx(1 / 3), "answers_without_label": 2}


def test_references_without_a_word_are_counted():
    figures = figures_of("rouge", ["?!", "yes", "..."], ["?!", "yes", "+"])
    assert figures["references_without_word"] == 2 and figures["rouge1"] == pytest.approx(100 / 3)
    assert figures["rouge_tokenizer"] == "default"
    assert "references_without_word" not in figures_of("rouge", ["yes"], ["no"])


def test_exact_match():
    figures = figures_of("exact_match", [" Yes\n", "no", "yes!"], ["yes", "NO ", "yes"])
    assert figures == {"exact_match": pytest.approx(2 / 3)}


def test_squad():
    """Case, punctuation and articles aside; 2 of 2 and of 3 words in common."""
    figures, rows = scored(["squad"], ["The Cat!", "black cat", "dog"], ["a cat", "a big black cat", "cat"])
    assert rows["squad_exact_match"] == [100, 0, 0]
    assert rows["squad_f1"] == pytest.approx([100, 100 * 2 * 2 / (2 + 3), 0])
    assert figures["squad_f1"] == pytest.approx(60)


def test_rouge_is_that_of_rouge_score():
    kinds = ["rouge1", "rouge2", "rougeL", "rougeLsum"]
    scorer = RougeScorer(kinds, use_stemmer=True)
    answers, references = [*ANSWERS, "cats sat\nthe mat"], [*REFERENCES, "the mat\na cat sat"]
    expected = [scorer.score(reference, answer) for answer, reference in zip(answers, references, strict=True)]
    figures, rows = scored(["rouge"], answers, references)
    assert figures.pop("rouge_tokenizer") == "default" and list(figures) == kinds
    for kind, score in figures.items():
        assert rows[kind] == pytest.approx([100 * row[kind].fmeasure for row in expected])
        assert score == pytest.approx(sum(rows[kind]) / len(answers))
    assert 0 < figures["rouge2"] < figures["rougeL"] < figures["rougeLsum"] < figures["rouge1"]


def test_rouge_in_numbers():
    """4 of 4 and of 6 words in common, none of the pairs, 2 in order: police ... killed or the gunman."""
    figures = figures_of("rouge", ["police killed the gunman"], ["the gunman was killed by police"])
    assert figures["rouge1"] == pytest.approx(100 * 2 * 4 / (4 + 6))
    assert figures["rouge2"] == pytest.approx(100 * 2 * 1 / (3 + 5))
    assert figures["rougeL"] == pytest.approx(100 * 2 * 2 / (4 + 6))
    assert set(figures_of("rouge", ["same words"], ["same words"]).values()) == {100.0, "default"}
    assert figures_of("rouge", ["running"], ["runs"])["rouge1"] == 100.0, "stemmed"


def test_bleu_and_chrf_are_those_of_sacrebleu():
    figures, rows = scored(["bleu", "chrf"], ANSWERS, REFERENCES)
    bleu, chrf = sacrebleu.metrics.BLEU(), sacrebleu.metrics.CHRF()
    assert figures["bleu"] == pytest.approx(bleu.corpus_score(ANSWERS, [REFERENCES]).score) and figures["bleu"] > 1
    assert figures["chrf"] == pytest.approx(chrf.corpus_score(ANSWERS, [REFERENCES]).score)
    assert figures["bleu_signature"] == str(bleu.get_signature())
    assert figures["chrf_signature"] == str(chrf.get_signature())
    pairs = list(zip(ANSWERS, REFERENCES, strict=True))
    assert rows["bleu"] == pytest.approx([sacrebleu.sentence_bleu(answer, [text]).score for answer, text in pairs])
    assert rows["chrf"] == pytest.approx([sacrebleu.sentence_chrf(answer, [text]).score for answer, text in pairs])


def test_meteor_is_that_of_nltk():
    class Nothing:
        @staticmethod
        def synsets(word):
            return []

    figures, rows = scored(["meteor"], ANSWERS, REFERENCES)
    pairs = zip(ANSWERS, REFERENCES, strict=True)
    expected = [100 * single_meteor_score(text.split(), answer.split(), wordnet=Nothing) for answer, text in pairs]
    assert rows["meteor"] == pytest.approx(expected) and figures["meteor_modules"] == "exact, stem"


def test_length_and_distinct_need_no_references():
    figures, rows = scored(["length", "distinct"], ["a b a b", "", "a"], ["", "", ""])
    assert rows["length_words"] == [4, 0, 1] and rows["length_characters"] == [7, 0, 1]
    assert rows["distinct_1"] == pytest.approx([0.5, np.nan, 1], nan_ok=True)
    assert rows["distinct_2"] == pytest.approx([2 / 3, np.nan, np.nan], nan_ok=True)
    assert figures["distinct_1"] == pytest.approx(0.75) and figures["distinct_2"] == pytest.approx(2 / 3)


def test_perplexity():
    assert perplexity(0.0) == 1.0
    assert perplexity(math.log(32)) == pytest.approx(32)
    assert perplexity(5000.0) == math.inf
    assert math.isnan(perplexity(math.nan))
    figures = perplexity_scores(np.array([3.0, 5.0]), np.array([1.0, 3.0])).result(0)
    assert figures == {"loss": 2.0, "perplexity": pytest.approx(math.exp(2))}, "a mean over tokens, not rows"
    assert perplexity_scores(np.array([5000.0]), np.array([1.0])).result(0)["perplexity"] == math.inf


def test_only_what_was_asked_for():
    assert figures_of("perplexity", ["good"], ["good"]) == {}
    figures, _ = scored(["accuracy", "exact_match", "rouge", "perplexity"], ["good"], ["good"], LABELS)
    rouges = {"rouge1", "rouge2", "rougeL", "rougeLsum", "rouge_tokenizer"}
    assert figures.keys() == {"accuracy", "answers_without_label", "exact_match", *rouges}


def test_a_call_of_a_tool_is_no_text_to_compare_with():
    """Silence would match it, and the same call would not."""
    metrics = ["accuracy", "exact_match", "rouge"]
    figures, rows = scored(metrics, ["<call>", "", "good"], ["", "", "good"], LABELS)
    assert (figures["accuracy"], figures["exact_match"], figures["rouge1"]) == (1, 1, 100)
    assert figures["references_without_text"] == 2
    assert rows["exact_match"] == pytest.approx([np.nan, np.nan, 1], nan_ok=True)
    assert scored(metrics, ["<call>"], [""], LABELS)[0] == {"references_without_text": 1}


def test_the_interval_of_a_mean_is_that_of_a_bootstrap():
    """Beside the normal approximation, and another bootstrap by recomputing."""
    values = np.random.default_rng(1).exponential(size=200)
    figures = means({"x": values}).result(2000)
    low, high = figures["x_interval"]
    error = values.std() / len(values) ** 0.5
    assert (low, high) == pytest.approx((values.mean() - 1.96 * error, values.mean() + 1.96 * error), abs=error / 5)
    again = resampled(lambda places: {"x": float(values[places].mean())}, len(values), 2000)
    assert again["x_interval"] == pytest.approx([low, high])


def test_corpus_figures_have_the_interval_of_their_sums():
    """The corpus's BLEU of a sample of rows, not the mean of theirs."""
    [scores] = score_answers(["bleu"], ANSWERS, REFERENCES, None)
    [counts] = list(sample_counts(len(ANSWERS), 50))
    expected = []
    for count in counts.astype(int):
        pairs = [
            pair for pair, times in zip(zip(ANSWERS, REFERENCES, strict=True), count, strict=True) for _ in range(times)
        ]
        answers, references = (list(texts) for texts in zip(*pairs, strict=True))
        expected.append(sacrebleu.corpus_bleu(answers, [references]).score)
    assert scores.result(50)["bleu_interval"] == pytest.approx(list(np.percentile(expected, (2.5, 97.5))))


def test_rows_that_are_left_out_count_for_nothing():
    there = np.array([True, False, True])
    scores = placed(means({"x": np.array([1.0, 3.0])}), there)
    assert scores.result(0) == {"x": 2.0}
    assert scores.by_row["x"] == pytest.approx([1, np.nan, 3], nan_ok=True)
    nothing = Scores(np.zeros((3, 2)), means({"x": np.array([1.0])}).figures)
    assert nothing.result(10) == {}, "no figure of no rows"


@pytest.mark.parametrize("metric", ["rouge", "bleu", "squad", "length", "accuracy"])
def test_metrics_are_those_of_the_library_evaluate(metric, tmp_path):
    """Loaded by its path, as any other."""
    loaded = evaluate.load(answer_metrics.__file__, metric, cache_dir=str(tmp_path))
    assert isinstance(loaded, evaluate.Metric)
    references = {} if metric == "length" else {"references": REFERENCES}
    labels = ["cat", "police"] if metric == "accuracy" else None
    found = loaded.compute(predictions=ANSWERS, **references, **({"labels": labels} if labels else {}))
    assert found == figures_of(metric, ANSWERS, REFERENCES, labels)


def test_a_metric_that_is_not_there(tmp_path):
    with pytest.raises(KeyError, match="name one of accuracy"):
        evaluate.load(answer_metrics.__file__, "bloo", cache_dir=str(tmp_path))


def test_labels_are_places():
    assert list(named_labels(["bad", "none", "very good"], LABELS)) == [0, -1, 2]
