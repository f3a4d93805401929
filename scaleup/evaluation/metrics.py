"""Answers and references go in; what each metric makes of every row comes out."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np

from scaleup.evaluation.scores import Scores, means, ratio
from scaleup.evaluation.scripts import label_fold, place_of, rouge_tokenizer, words

NOT_PUNCTUATION = str.maketrans("", "", string.punctuation)


def perplexity_scores(losses: np.ndarray, counts: np.ndarray) -> Scores:
    """Return `loss`, the mean over all labelled tokens, in nats, and `perplexity` of rows (N): their losses, sums over
    `counts` tokens each."""

    def figures(sums: np.ndarray) -> dict[str, np.ndarray]:
        loss = ratio(sums[:, 0], sums[:, 1])
        return {"loss": loss, "perplexity": np.where(loss > 700, np.inf, np.exp(np.minimum(loss, 700)))}

    return Scores(np.stack([losses, counts], axis=1), figures, {"loss": ratio(losses, counts)})


def first_label(answer: str, labels: Sequence[str]) -> str | None:
    """Return the label that an answer names first, as a whole word in any case; of two at one place the longer."""
    fold = label_fold(frozenset(labels))
    text = fold(answer)
    places = [(at, -len(label), label) for label in labels if (at := place_of(fold(label), text)) is not None]
    return min(places)[2] if places else None


def named_labels(texts: Sequence[str], labels: Sequence[str]) -> np.ndarray:
    """Return the place in `labels` of the one that each text names first, (N,); -1 where it names none."""
    places = {label: place for place, label in reversed(list(enumerate(labels)))}
    return np.array([-1 if (label := first_label(text, labels)) is None else places[label] for text in texts], int)


def accuracy(predicted: np.ndarray, wanted: np.ndarray) -> Scores:
    """Return the share of answers (N) whose label is the reference's, given as places of labels, -1 for none; how many
    answers have none, each of which is wrong; and how many references, which no answer can match, where there are
    any."""
    without = int((wanted < 0).sum())
    facts = {"answers_without_label": int((predicted < 0).sum())}
    hits = ((predicted == wanted) & (wanted >= 0)).astype(float)
    return means({"accuracy": hits}, **facts, **({"references_without_label": without} if without else {}))


def f1(predicted: np.ndarray, wanted: np.ndarray, num_labels: int) -> Scores:
    """Return F1 = 2 hits / (predicted + wanted) over labels, given as places, -1 for none: `f1_macro`, the mean over
    labels that are wanted or predicted, and `f1_micro`, of all together. Both are scikit-learn's `f1_score`."""
    each = np.arange(num_labels)
    given, true = (labels[:, None] == each for labels in (predicted, wanted))
    sums = np.concatenate([given & true, given, true], axis=1).astype(float)

    def figures(sums: np.ndarray) -> dict[str, np.ndarray]:
        hits, given, true = np.split(sums, 3, axis=1)
        of_labels = ratio(2 * hits, given + true)
        there = ~np.isnan(of_labels)
        macro = ratio(np.where(there, of_labels, 0.0).sum(axis=1), there.sum(axis=1))
        return {"f1_macro": macro, "f1_micro": ratio(2 * hits.sum(axis=1), (given + true).sum(axis=1))}

    return Scores(sums, figures)


def exact_match(answers: Sequence[str], references: Sequence[str]) -> Scores:
    """Return the share of answers that equal the reference, white space at the ends and case aside."""
    hits = [a.strip().casefold() == r.strip().casefold() for a, r in zip(answers, references, strict=True)]
    return means({"exact_match": np.array(hits, float)})


def squad(answers: Sequence[str], references: Sequence[str]) -> Scores:
    """Return exact match and F1 over words (Rajpurkar et al. 2016), times 100: case, punctuation and articles aside."""
    pairs = [(_squad_words(a), _squad_words(r)) for a, r in zip(answers, references, strict=True)]
    exact = np.array([float(a == r) for a, r in pairs])
    shared = np.array([_word_f1(a, r) for a, r in pairs])
    return means({"squad_exact_match": exact, "squad_f1": shared}, 100.0)


def _squad_words(text: str) -> list[str]:
    return re.sub(r"\b(a|an|the)\b", " ", text.lower().translate(NOT_PUNCTUATION)).split()


def _word_f1(answer: Sequence[str], reference: Sequence[str]) -> float:
    same = (Counter(answer) & Counter(reference)).total()
    return 2 * same / (len(answer) + len(reference)) if same else 0.0


def rouge(answers: Sequence[str], references: Sequence[str]) -> Scores:
    """Return the mean F1 of ROUGE-1, -2, -L and -Lsum (Lin 2004), with stemming, times 100, by Google's rouge_score;
    what cut the texts into words; and how many references have none, with which no answer has a word in common, where
    there are any."""
    from rouge_score.rouge_scorer import RougeScorer

    kinds = ["rouge1", "rouge2", "rougeL", "rougeLsum"]
    tokenizer = rouge_tokenizer(references)
    scorer = RougeScorer(kinds, tokenizer=tokenizer)
    scores = [scorer.score(reference, answer) for answer, reference in zip(answers, references, strict=True)]
    by_row = {kind: np.array([score[kind].fmeasure for score in scores]) for kind in kinds}
    num_without = sum(not tokenizer.tokenize(reference) for reference in references)
    counts = {"references_without_word": num_without} if num_without else {}
    return means(by_row, 100.0, rouge_tokenizer=tokenizer.name, **counts)


def bleu(answers: Sequence[str], references: Sequence[str]) -> Scores:
    """Return BLEU (Papineni et al. 2002) of the corpus, and of each row with the n-grams that it has, by sacrebleu;
    `bleu_signature` says by which settings."""
    from sacrebleu.metrics import BLEU

    corpus, single = BLEU(), BLEU(effective_order=True)
    rows = [single.sentence_score(answer, [text]) for answer, text in zip(answers, references, strict=True)]
    sums = np.array([[*row.counts, *row.totals, row.sys_len, row.ref_len] for row in rows], float)

    def figures(sums: np.ndarray) -> dict[str, np.ndarray]:
        order = corpus.max_ngram_order
        scores = [
            BLEU.compute_bleu(
                [int(each) for each in row[:order]],
                [int(each) for each in row[order : 2 * order]],
                int(row[-2]),
                int(row[-1]),
                smooth_method=corpus.smooth_method,
                smooth_value=corpus.smooth_value,
                effective_order=False,
                max_ngram_order=order,
            ).score
            for row in sums
        ]
        return {"bleu": np.array(scores)}

    corpus.corpus_score([""], [[""]])  # a signature is that of a corpus
    by_row = {"bleu": np.array([row.score for row in rows])}
    return Scores(sums, figures, by_row, {"bleu_signature": str(corpus.get_signature())})


def chrf(answers: Sequence[str], references: Sequence[str]) -> Scores:
    """Return chrF2 (Popović 2015) of the corpus and of each row, by sacrebleu; `chrf_signature` says by which
    settings."""
    from sacrebleu.metrics import CHRF

    metric: Any = CHRF()
    sums = np.array(metric._extract_corpus_statistics(list(answers), [list(references)]), float)

    def figures(sums: np.ndarray) -> dict[str, np.ndarray]:
        return {"chrf": np.array([metric._compute_score_from_stats([int(x) for x in row]).score for row in sums])}

    metric.corpus_score([""], [[""]])
    return Scores(sums, figures, {"chrf": figures(sums)["chrf"]}, {"chrf_signature": str(metric.get_signature())})


@cache
def _synonyms() -> Any | None:
    """Return NLTK's WordNet; None where its data is not on this machine."""
    import nltk

    try:
        nltk.data.find("corpora/wordnet.zip")
    except LookupError:
        return None
    from nltk.corpus import wordnet

    return wordnet


class _NoSynonyms:
    @staticmethod
    def synsets(word: str) -> list[Any]:
        return []


def meteor(answers: Sequence[str], references: Sequence[str]) -> Scores:
    """Return METEOR (Banerjee and Lavie 2005), times 100, by NLTK, over words as the other metrics cut them.
    `meteor_modules` says what it matched: equal words and stems, and synonyms where NLTK's WordNet is on the
    machine."""
    from nltk.translate.meteor_score import single_meteor_score

    wordnet = _synonyms()
    modules = "exact, stem" if wordnet is None else "exact, stem, synonym"
    scores = [
        single_meteor_score(words(text), words(answer), wordnet=wordnet or _NoSynonyms)
        for answer, text in zip(answers, references, strict=True)
    ]
    return means({"meteor": np.array(scores)}, 100.0, meteor_modules=modules)


def length(answers: Sequence[str]) -> Scores:
    """Return the mean number of words and characters of answers."""
    counts = {
        "length_words": np.array([len(words(answer)) for answer in answers], float),
        "length_characters": np.array([len(answer) for answer in answers], float),
    }
    return means(counts)


def distinct(answers: Sequence[str]) -> Scores:
    """Return distinct-1 and distinct-2 (Li et al. 2016, section 4.3), of each answer by itself: the share of its words,
    and of its pairs of words, that are not there before. Answers without a pair have none."""
    cut = [words(answer) for answer in answers]
    by_row = {f"distinct_{n}": np.array([_distinct(each, n) for each in cut]) for n in (1, 2)}
    return means(by_row)


def _distinct(parts: Sequence[str], n: int) -> float:
    grams = list(zip(*(parts[first:] for first in range(n)), strict=False))
    return len(set(grams)) / len(grams) if grams else np.nan


COMPARED: dict[str, Callable[[Sequence[str], Sequence[str]], Scores]] = {
    "exact_match": exact_match,
    "squad": squad,
    "rouge": rouge,
    "bleu": bleu,
    "chrf": chrf,
    "meteor": meteor,
}
"""Maps the name of a metric that compares answers with references -> it."""
ALONE: dict[str, Callable[[Sequence[str]], Scores]] = {"length": length, "distinct": distinct}
"""Maps the name of a metric of answers alone -> it."""


def score_answers(
    metrics: Sequence[str], answers: Sequence[str], references: Sequence[str], labels: Sequence[str] | None
) -> list[Scores]:
    """Return the scores of those of `metrics` that texts alone tell. What has no text to compare with (an answer that
    only calls tools) is left out and counted."""
    scores = [ALONE[metric](answers) for metric in metrics if metric in ALONE]
    if not {"accuracy", "f1", *COMPARED} & set(metrics):
        return scores
    there = np.array([bool(text) for text in references])
    if (num_without := int((~there).sum())) > 0:
        scores.append(
            Scores(np.zeros((len(answers), 0)), lambda sums: {}, {}, {"references_without_text": num_without})
        )
    if not there.any():
        return scores
    answers, references = (
        [text for text, is_there in zip(all, there, strict=True) if is_there] for all in (answers, references)
    )
    compared = [COMPARED[metric](answers, references) for metric in metrics if metric in COMPARED]
    if {"accuracy", "f1"} & set(metrics):
        assert labels, "the plan refuses accuracy without labels"
        given, wanted = named_labels(answers, labels), named_labels(references, labels)
        compared += [accuracy(given, wanted)] if "accuracy" in metrics else []
        compared += [f1(given, wanted, len(labels))] if "f1" in metrics else []
    return [*scores, *(placed(each, there) for each in compared)]


def placed(scores: Scores, there: np.ndarray) -> Scores:
    """Return scores of the rows that are `there`, (N,) booleans, as scores of all N."""
    sums = np.zeros((len(there), scores.sums.shape[1]))
    sums[there] = scores.sums
    by_row = {name: np.full(len(there), np.nan) for name in scores.by_row}
    for name, values in scores.by_row.items():
        by_row[name][there] = values
    return Scores(sums, scores.figures, by_row, scores.facts)
