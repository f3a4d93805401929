"""Answers and references go in; accuracy, exact match and ROUGE come out."""

from __future__ import annotations

import math
from collections.abc import Sequence

from scaleup.evaluation.scripts import folded, place_of, rouge_tokenizer


def perplexity(mean_loss: float) -> float:
    """Return exp of the mean negative log-likelihood a token, in nats; infinity where that overflows."""
    return math.inf if mean_loss > 700 else math.exp(mean_loss)


def first_label(answer: str, labels: Sequence[str]) -> str | None:
    """Return the label that an answer names first, as a whole word in any case; of two at one place the longer."""
    text = folded(answer)
    places = [(at, -len(label), label) for label in labels if (at := place_of(label, text)) is not None]
    return min(places)[2] if places else None


def accuracy(answers: Sequence[str], references: Sequence[str], labels: Sequence[str]) -> float:
    """Return the share of answers whose first label is the reference's. An answer without a label is wrong."""
    hits = [
        (predicted := first_label(answer, labels)) is not None and predicted == first_label(reference, labels)
        for answer, reference in zip(answers, references, strict=True)
    ]
    return sum(hits) / len(hits)


def exact_match(answers: Sequence[str], references: Sequence[str]) -> float:
    """Return the share of answers that equal the reference, white space at the ends and case aside."""
    hits = [a.strip().casefold() == r.strip().casefold() for a, r in zip(answers, references, strict=True)]
    return sum(hits) / len(hits)


def rouge(answers: Sequence[str], references: Sequence[str]) -> dict[str, float | str]:
    """Return the mean F1 of ROUGE-1, -2 and -L (Lin 2004), with stemming, times 100, by Google's rouge_score; and
    what cut the texts into words."""
    from rouge_score.rouge_scorer import RougeScorer

    kinds = ["rouge1", "rouge2", "rougeL"]
    tokenizer = rouge_tokenizer(references)
    scorer = RougeScorer(kinds, tokenizer=tokenizer)
    scores = [scorer.score(reference, answer) for answer, reference in zip(answers, references, strict=True)]
    means = {kind: 100 * sum(score[kind].fmeasure for score in scores) / len(scores) for kind in kinds}
    return {**means, "rouge_tokenizer": tokenizer.name}


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
        scores["accuracy"] = accuracy(answers, references, labels)
        if num_without := sum(first_label(reference, labels) is None for reference in references):
            scores["references_without_label"] = num_without  # which no answer can match
    if "exact_match" in metrics:
        scores["exact_match"] = exact_match(answers, references)
    if "rouge" in metrics:
        scores |= rouge(answers, references)
    return scores
