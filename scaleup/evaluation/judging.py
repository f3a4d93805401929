"""A language model and questions which of two responses is the better go in; its preferences come out, from the
log-probabilities of two options in both orders, and how far the order decided (Bai et al. 2022, section 4.1)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from scaleup.artifacts.files import read_json, write_json
from scaleup.data.collate import Collator
from scaleup.data.tokenization import Encoder, Tokens
from scaleup.distributed.runtime import Runtime
from scaleup.evaluation.likelihood import response_logps
from scaleup.evaluation.scores import means, of_rows
from scaleup.records.chats import Chat
from scaleup.records.examples import PromptCompletion

BLOCK = 64
"""Counts the pairs after which what is known is written down: a run that goes on asks the others alone."""
NUM_SAMPLES = 1000
Questions = tuple[str, str]
"""Is one question in both orders: the first response is the first option, then the second one is."""


@dataclass(frozen=True)
class Judgements:
    """Holds what a judge says of N pairs; NaN of pairs whose questions are too long."""

    logps: np.ndarray
    """Holds the options' log-probabilities (N, 2, 2), in nats, up to the first token in which they differ: by pair, by
    order (the first response is the first option; the second one is), and by option."""

    @property
    def log_odds(self) -> np.ndarray:
        """Returns of each pair (N) the log-odds that the first response is the better, the mean of both orders: what
        the judge adds to an option wherever it stands cancels out."""
        return self.by_order.mean(axis=1)

    @property
    def by_order(self) -> np.ndarray:
        """Returns these log-odds in each order (N, 2)."""
        towards_first_option = self.logps[:, :, 0] - self.logps[:, :, 1]
        return towards_first_option * np.array([1.0, -1.0])

    @property
    def probability(self) -> np.ndarray:
        """Returns the probability (N) that the first response is the better: the sigmoid of `log_odds`."""
        return 1 / (1 + np.exp(-self.log_odds))

    @property
    def order_decides(self) -> np.ndarray:
        """Returns of each pair (N) whether another response is preferred in the other order: 0 or 1, or NaN."""
        one, other = self.by_order.T
        return np.where(np.isnan(one), np.nan, one * other <= 0)

    def figures(self, is_known: bool) -> dict[str, Any]:
        """Returns means over pairs with their 95 % intervals: `order_decides`, and the judge's habit, `first_option`
        (how often the first option is the likelier) and `first_option_log_odds` (by how much, in nats); `confidence`,
        the probability of what is preferred; and where it is known that the first response is the better
        (`is_known`), `agreement`."""
        bias = self.logps[:, :, 0] - self.logps[:, :, 1]
        there = ~np.isnan(self.log_odds)
        by_row = {
            "order_decides": self.order_decides,
            "first_option": np.where(there, (bias > 0).mean(axis=1), np.nan),
            "first_option_log_odds": bias.mean(axis=1),
            "confidence": np.maximum(self.probability, 1 - self.probability),
        }
        if is_known:
            by_row["agreement"] = np.where(there, np.heaviside(self.log_odds, 0.5), np.nan)
        if not there.any():
            return {}
        return means({name: values[there] for name, values in by_row.items()}).result(NUM_SAMPLES)


@dataclass(frozen=True)
class Judge:
    """Asks one model. Every rank must have one and make the same calls."""

    runtime: Runtime
    model: Any
    encoder: Encoder
    collate: Collator
    options: tuple[str, str]
    as_chat: bool
    """Tells whether a question is a message of the user, and an option the assistant's answer."""
    batch_size: int
    parts: Path
    """Is the folder, within the run folder, in which answers are kept for a run that goes on."""

    def __call__(self, questions: Sequence[Questions]) -> Judgements:
        """Returns what the model says to N questions, each asked in both orders."""
        parts = [
            self._block(questions[start : start + BLOCK], start, len(questions))
            for start in range(0, len(questions), BLOCK)
        ]
        return Judgements(np.concatenate(parts) if parts else np.zeros((0, 2, 2)))

    def _block(self, questions: Sequence[Questions], start: int, total: int) -> np.ndarray:
        """Returns the log-probabilities (B, 2, 2) of some pairs: those that are kept, or new ones."""
        settings = [questions, self.options, self.as_chat, self.encoder.data.model_dump(mode="json")]
        key = hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:16]
        file = self.parts / f"{start}-{key}.json"
        if file.is_file():
            self.runtime.barrier()  # nobody writes it while another looks for it
            return np.array(read_json(file), float).reshape(-1, 2, 2)
        self.runtime.barrier()
        self.runtime.progress.report("judging", start, total)
        rows = self._option_rows([question for order in questions for question in order])
        known = [place for place, row in enumerate(rows) if row is not None]
        logps = np.full(len(rows), np.nan)
        if known:
            kept = [row for row in rows if row is not None]
            logps[known] = of_rows(self.runtime, self.model, kept, self.collate, self.batch_size, response_logps)
        made = logps.reshape(-1, 2, 2)
        made[np.isnan(made).any(axis=(1, 2))] = np.nan
        if self.runtime.is_main:
            self.parts.mkdir(parents=True, exist_ok=True)
            write_json(file, [[None if np.isnan(each) else each for each in row] for row in made.reshape(-1, 4)])
        return made

    def _option_rows(self, questions: Sequence[str]) -> list[Tokens | None]:
        """Returns a row for each option of each question, up to the first token in which the options differ; None for
        a question that is longer than `data.max_length` with an option."""
        examples = [self._with(question, option) for question in questions for option in self.options]
        rows = self.encoder(examples)
        made: list[Tokens | None] = []
        for one, other in zip(rows[::2], rows[1::2], strict=True):
            made += [None, None] if one is None or other is None else self._until_they_differ(one, other)
        return made

    def _with(self, question: str, option: str) -> PromptCompletion | Chat:
        if not self.as_chat:
            return PromptCompletion(question, option)
        return Chat([{"role": "user", "content": question}, {"role": "assistant", "content": option}])

    def _until_they_differ(self, one: Tokens, other: Tokens) -> list[Tokens]:
        """Returns two rows without what comes behind the first token in which their answers differ: an option is no
        less likely for what ends it."""
        shared = min(len(one.labels), len(other.labels))
        differing = np.flatnonzero(one.labels[:shared] != other.labels[:shared])
        end = int(differing[0]) + 1 if len(differing) else shared
        is_apart = self.encoder.task == "seq2seq_lm"  # then the prompt is no part of the answer's row
        return [
            replace(row, input_ids=row.input_ids if is_apart else row.input_ids[:end], labels=row.labels[:end])
            for row in (one, other)
        ]
