"""A model's tokenizer and the rows that a run has as tokens go in: they are checked, tokenized and kept before anything
starts, and what is left out of them comes out, in sentences."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from typing import Any

from scaleup.children import PROGRESS
from scaleup.config.schema import ModelConfig
from scaleup.data.pairs import PairEncoder
from scaleup.data.preferences import PreferenceEncoder
from scaleup.data.prepared import prepared_rows
from scaleup.data.prompts import read_prompts
from scaleup.data.tokenization import Encoder, RowEncoder
from scaleup.data.too_long import left_out_sentences
from scaleup.data.unpaired import UnpairedEncoder
from scaleup.distributed.progress import Progress
from scaleup.models.load import load_tokenizer
from scaleup.plan.facts import ModelFacts, RowsRequest
from scaleup.records.examples import row_format
from scaleup.records.format_rules import holds_class, holds_preferences, is_unpaired
from scaleup.records.formats import local_path
from scaleup.train.reading import pair_reader, reading_of

FIRST_SECONDS = 5.0
NEXT_SECONDS = 1.0
BAR = 20


def token_notes(model: ModelConfig, facts: ModelFacts, rows: RowsRequest, where: str) -> Iterator[str]:
    """Yields what is left out of the rows of local sources. Those of a hub become tokens when the run starts; so do
    rows of another kind than the model reads, which the plan has yet to refuse.

    Raises ScaleupError as tokenizing does."""
    if not rows.tokens:
        return
    encoder = _encoder(model, facts, rows, where)
    for split, needs in rows.tokens.items():
        for place, source in enumerate(getattr(rows.data, split) or []):
            if local_path(rows.data, source, split) is None:
                continue
            key = f"data.{split}.{place}"
            if needs == "prompts" and isinstance(encoder, Encoder):
                read_prompts(rows.data.model_copy(update={split: [source]}), split, encoder, _Lines(key))
                continue
            if not _is_read(facts, rows, row_format(rows.data, source)):
                continue
            prepared = prepared_rows(rows.data, source, split, encoder, _Lines(key))
            total = len(prepared.rows) + prepared.num_dropped
            for sentence in left_out_sentences(prepared.left_out, total, rows.data):
                yield f"{key}: {sentence}"


def _encoder(model: ModelConfig, facts: ModelFacts, rows: RowsRequest, where: str) -> RowEncoder:
    tokenizer = load_tokenizer(model, facts.tokenizer_at, where)
    if rows.pairs_template is not None:
        return PairEncoder(pair_reader(facts, tokenizer, rows.data, rows.pairs_template), rows.data)
    if rows.preferences and facts.task != "sequence_classification":
        encoder = Encoder(tokenizer, facts.task, rows.data)
        return PreferenceEncoder(encoder) if rows.preferences == "pairs" else UnpairedEncoder(encoder)
    return reading_of(facts, tokenizer, rows.data).encoder


def _is_read(facts: ModelFacts, rows: RowsRequest, form: Any) -> bool:
    """Returns whether the model reads rows of a format."""
    if rows.pairs_template is not None or rows.preferences == "pairs":
        return holds_preferences(form)
    if rows.preferences == "unpaired":
        return is_unpaired(form)
    if facts.task == "sequence_classification":
        return holds_class(form) and facts.reads_labels
    if holds_preferences(form) or form.label is not None:
        return False
    return facts.task == "causal_lm" or (form.messages is None and form.text is None)


class _Lines(Progress):
    """Tells on stderr how far the rows of a source are."""

    def __init__(self, key: str) -> None:
        super().__init__(None, enabled=True)
        self._key = key
        self._begun = time.monotonic()
        self._next = self._begun + FIRST_SECONDS

    def report(self, phase: str, done: int = 0, total: int | None = None, **shown: Any) -> None:
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + NEXT_SECONDS
        print(f"{PROGRESS}{self._key}: {phase}{_bar(done, total, now - self._begun)}", file=sys.stderr, flush=True)

    def say(self, line: str, of_any_rank: bool = False) -> None:
        print(line, file=sys.stderr, flush=True)


def _bar(done: int, total: int | None, seconds: float) -> str:
    if not done:
        return ""
    rate = f"{done / seconds:,.0f} a second"
    if not total:
        return f" {done:,}, {rate}"
    full = min(BAR, BAR * done // total)
    return f" [{'#' * full}{'.' * (BAR - full)}] {done:,} of {total:,}, {rate}"
