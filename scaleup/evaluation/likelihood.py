"""A language model and held-out rows go in; what follows from its probabilities comes out: the loss of each row, the
likeliest of several labels, the divergence from another model."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from scaleup.config.evaluation import EvaluationConfig
from scaleup.data.collate import Batch, Collator
from scaleup.data.tokenization import Encoder, Tokens, last_answer, opening
from scaleup.distributed.runtime import Runtime
from scaleup.evaluation.metrics import accuracy, f1, first_label, placed
from scaleup.evaluation.quality import token_log_probabilities
from scaleup.evaluation.scores import Scores, of_rows, ratio
from scaleup.models.soft_prompts import num_prepended
from scaleup.records.chats import Chat
from scaleup.records.examples import Example, Opening, PlainText, PromptCompletion
from scaleup.train.token_head import TokenQuery, token_stats


def response_logps(model: Any, batch: Batch) -> torch.Tensor:
    """Return log-probabilities (B) of what is labelled in B rows, summed over tokens, in nats."""
    query = TokenQuery(num_prepended(model), batch.labels.clamp(min=0), batch.places.flat)
    return token_stats(model, batch.inputs, query).logprobs.sum(dim=1)


def row_losses(runtime: Runtime, model: Any, rows: Sequence[Tokens], collate: Collator, batch_size: int) -> np.ndarray:
    """Return the loss (N) of each row, summed over its labelled tokens, in nats. Every rank must call it and gets
    all."""
    return -of_rows(runtime, model, rows, collate, batch_size, response_logps)


def label_scores(
    runtime: Runtime,
    model: Any,
    examples: Sequence[Example],
    encoder: Encoder,
    collate: Collator,
    settings: EvaluationConfig,
) -> list[Scores]:
    """Return `likelihood_accuracy`, and F1 likewise: the prediction is the label with which the completion is the
    likeliest, by its sum over tokens, as the accuracy of EleutherAI's evaluation harness. Rows whose completion holds
    no label, and those that are too long with one of them, are left out and counted."""
    labels = settings.labels
    assert labels, "the plan refuses it without labels"
    candidates = [_with_labels(example, labels) for example in examples]
    encoded = [encoder(each) if each else [] for each in candidates]
    there = np.array([bool(rows) and all(row is not None for row in rows) for rows in encoded], bool)
    rows = [row for rows, is_there in zip(encoded, there, strict=True) if is_there for row in rows if row is not None]
    if not rows:
        return [Scores(np.zeros((len(examples), 0)), lambda sums: {}, {}, {"rows_without_label": len(examples)})]
    logps = -row_losses(runtime, model, rows, collate, settings.batch_size).reshape(-1, len(labels))
    wanted = np.array(
        [labels.index(str(_label(each, labels))) for each, is_there in zip(examples, there, strict=True) if is_there]
    )
    made = []
    if "likelihood_accuracy" in settings.metrics:
        made.append(_renamed(accuracy(logps.argmax(axis=1), wanted)))
    if "likelihood_f1" in settings.metrics:
        made.append(_renamed(f1(logps.argmax(axis=1), wanted, len(labels))))
    left_out = {"rows_without_label": int((~there).sum())} if not there.all() else {}
    return [replace(placed(each, there), facts=left_out) for each in made]


def _renamed(scores: Scores) -> Scores:
    return Scores(
        scores.sums,
        lambda sums: {f"likelihood_{name}": values for name, values in scores.figures(sums).items()},
        {f"likelihood_{name}": values for name, values in scores.by_row.items()},
    )


def _label(example: Example, labels: Sequence[str]) -> str | None:
    return None if isinstance(example, PlainText) else first_label(_answer(example), labels)


def _answer(example: PromptCompletion | Chat) -> str:
    if isinstance(example, Chat):
        return example.messages[last_answer(example)].get("content") or ""
    return example.completion


def _with_labels(example: Example, labels: Sequence[str]) -> list[Example]:
    """Return the example with each label in the place of its own; none where it names none."""
    own = _label(example, labels)
    if own is None or isinstance(example, PlainText):
        return []
    text = _answer(example)
    # as a whole word where it stands as one: "goodness, it is good" names good at its end
    patterns = (rf"(?<!\w){re.escape(own)}(?!\w)", re.escape(own))
    place = next((found for each in patterns if (found := re.search(each, text, re.IGNORECASE))), None)
    if place is None:  # it is written otherwise, with vowel signs or the like
        return []
    written = place[0]
    cased = str.upper if written.isupper() else str.capitalize if written[:1].isupper() else str
    return [
        with_answer(example, text[: place.start()] + (cased(label) if label != own else written) + text[place.end() :])
        for label in labels
    ]


def prompt_of(example: Example | Opening) -> str | Chat:
    """Return what an answer to the row starts from."""
    assert not isinstance(example, PlainText), "it has no prompt"
    return opening(example) if isinstance(example, Chat) else example.prompt


def with_answer(example: Example | Opening, answer: str) -> PromptCompletion | Chat:
    """Return a row with its prompt and another answer."""
    prompt = prompt_of(example)
    if isinstance(prompt, Chat):
        return replace(prompt, messages=[*prompt.messages, {"role": "assistant", "content": answer}])
    return PromptCompletion(prompt, answer)


def divergence_scores(
    runtime: Runtime,
    models: tuple[Any, Any],
    examples: Sequence[Example | Opening],
    answers: Sequence[str],
    encoder: Encoder,
    collate: Collator,
    batch_size: int,
) -> Scores:
    """Return `kl`, the mean over answers of KL(model || reference) summed over an answer's tokens, in nats, over all of
    the vocabulary at each, and `kl_per_token`; `models` are the model and the reference. Empty answers that leave no
    token are left out."""
    rows = encoder([with_answer(example, answer) for example, answer in zip(examples, answers, strict=True)])
    there = np.array([row is not None for row in rows], bool)
    kept = [row for row in rows if row is not None]
    model, other = models

    def of(model: Any, batch: Batch) -> torch.Tensor:
        log_p, log_q = (token_log_probabilities(each, batch) for each in (model, other))
        each = (log_p.exp() * (log_p - log_q)).sum(dim=1)
        rows = batch.places.flat // batch.places.width
        sums = each.new_zeros((len(batch.labels), 2), dtype=torch.float64)
        return sums.index_add_(0, rows, torch.stack([each, torch.ones_like(each)], dim=1).double())

    measured = of_rows(runtime, model, kept, collate, batch_size, of) if kept else np.zeros((0, 2))
    sums = np.concatenate([measured, np.ones((len(measured), 1))], axis=1)

    def figures(sums: np.ndarray) -> dict[str, np.ndarray]:
        return {"kl": ratio(sums[:, 0], sums[:, 2]), "kl_per_token": ratio(sums[:, 0], sums[:, 1])}

    return placed(Scores(sums, figures, {"kl": measured[:, 0]}), there)
