"""Answers and references go in; accuracy, exact match and ROUGE come out."""

from __future__ import annotations

from collections.abc import Sequence

from scaleup.evaluation.scripts import label_fold, place_of, rouge_tokenizer


def first_label(answer: str, labels: Sequence[str]) -> str | None:
    """Return the label that an answer names first, as a whole word in any case; of two at one place the longer."""
    fold = label_fold(frozenset(labels))
    text = fold(answer)
    places = [(at, -len(label), label) for label in labels if (at := place_of(fold(label), text)) is not None]
    return min(places)[2] if places else None


def accuracy(answers: Sequence[str], references: Sequence[str], labels: Sequence[str]) -> dict[str, float]:
    """Return the share of answers whose first label is the reference's; how many answers have none, each of which is
    wrong; and how many references, which no answer can match, where there are any."""
    given, wanted = ([first_label(text, labels) for text in texts] for texts in (answers, references))
    hits = [label is not None and label == other for label, other in zip(given, wanted, strict=True)]
    counts = {"references_without_label": num_without} if (num_without := wanted.count(None)) else {}
    return {"accuracy": sum(hits) / len(hits), "answers_without_label": given.count(None), **counts}


def exact_match(answers: Sequence[str], references: Sequence[str]) -> float:
    """Return the share of answers that equal the reference, white space at the ends and case aside."""
    hits = [a.strip().casefold() == r.strip().casefold() for a, r in zip(answers, references, strict=True)]
    return sum(hits) / len(hits)


def rouge(answers: Sequence[str], references: Sequence[str]) -> dict[str, float | str]:
    """Return the mean F1 of ROUGE-1, -2 and -L (Lin 2004), with stemming, times 100, by Google's rouge_score; what cut
    the texts into words; and how many references have none, with which no answer has a word in common, where there are
    any."""
    from rouge_score.rouge_scorer import RougeScorer

    kinds = ["rouge1", "rouge2", "rougeL"]
    tokenizer = rouge_tokenizer(references)
    scorer = RougeScorer(kinds, tokenizer=tokenizer)
    scores = [scorer.score(reference, answer) for answer, reference in zip(answers, references, strict=True)]
    means = {kind: 100 * sum(score[kind].fmeasure for score in scores) / len(scores) for kind in kinds}
    num_without = sum(not tokenizer.tokenize(reference) for reference in references)
    counts = {"references_without_word": num_without} if num_without else {}
    return {**means, "rouge_tokenizer": tokenizer.name, **counts}


def score_answers(
    metrics: Sequence[str], answers: Sequence[str], references: Sequence[str], labels: Sequence[str] | None
) -> dict[str, float | str]:
    """Return those of `metrics` that compare answers with references. What has no text to compare with (an answer that
    only calls tools) is left out and counted."""
    compared = {"accuracy", "exact_match", "rouge"} & set(metrics)
    pairs = [(answer, text) for answer, text in zip(answers, references, strict=True) if text]
    num_without_text = len(references) - len(pairs) if compared else 0
    scores: dict[str, float | str] = {"references_without_text": num_without_text} if num_without_text else {}
    if not pairs:
        return scores
    answers, references = [answer for answer, _ in pairs], [text for _, text in pairs]
    if "accuracy" in metrics:
        assert labels, "the plan refuses accuracy without labels"
        scores |= accuracy(answers, references, labels)
    if "exact_match" in metrics:
        scores["exact_match"] = exact_match(answers, references)
    if "rouge" in metrics:
        scores |= rouge(answers, references)
    return scores
